#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| uvs_fuzz::captures::run(data));
