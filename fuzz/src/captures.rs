//! Bytes read as a capture file.

use uvs_engine::link::pcap::{Frame, MAX_FRAME, Reader, pcap_header, pcap_record};

/// Reads all there is. What was read and is written again reads the same.
pub fn run(data: &[u8]) {
    let Ok(reader) = Reader::new(data) else { return };
    let mut written = Vec::new();
    pcap_header(&mut written);
    let mut read = Vec::new();
    for record in reader {
        let Ok(record) = record else { break };
        assert!(record.bytes.len() <= MAX_FRAME as usize && record.bytes.len() <= data.len());
        let (time, wire_len, bytes) = (record.time, record.wire_len, &record.bytes[..]);
        pcap_record(
            &mut written,
            &Frame { interface: 0, time, wire_len, direction: None, comment: "", bytes },
        );
        read.push(record);
    }
    let again = Reader::new(&written[..]).expect("what we wrote has a header");
    for (record, before) in again.zip(&read) {
        let record = record.expect("what we wrote can be read");
        assert_eq!((&record.bytes, record.wire_len), (&before.bytes, before.wire_len));
    }
}
