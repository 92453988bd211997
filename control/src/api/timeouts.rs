//! The timeouts that a virtual service has of its own.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use uvs_conntrack::{MAX_TIMEOUT, OwnTimeouts};

/// Seconds that a service's connections live without a packet, by state: `established=3600,fin_wait=30`. In JSON an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct StateTimeouts(pub OwnTimeouts);

impl StateTimeouts {
    /// Sets one.
    ///
    /// # Errors
    /// There is no such state, or it cannot live that long. A sentence.
    pub fn set(&mut self, state: &str, seconds: u32) -> Result<(), String> {
        if !(1..=MAX_TIMEOUT).contains(&seconds) {
            return Err(format!("a timeout has 1 to {MAX_TIMEOUT} seconds"));
        }
        if self.0.set(state, seconds) {
            return Ok(());
        }
        Err(format!("there is no state {state:?}, only {}", OwnTimeouts::NAMES.join(", ")))
    }

    /// Whether there is one of a state of TCP.
    pub fn has_tcp(&self) -> bool {
        self.0.iter().any(|(state, _)| state != "udp")
    }

    /// Whether there is one of UDP's state.
    pub fn has_udp(&self) -> bool {
        self.0.iter().any(|(state, _)| state == "udp")
    }
}

impl FromStr for StateTimeouts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut timeouts = StateTimeouts::default();
        for item in text.split(',') {
            let (state, seconds) =
                item.split_once('=').ok_or_else(|| format!("{item:?} is not of the form STATE=SECONDS"))?;
            let seconds = seconds.parse().map_err(|_| format!("{seconds:?} is no number of seconds"))?;
            timeouts.set(state, seconds)?;
        }
        Ok(timeouts)
    }
}

impl fmt::Display for StateTimeouts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let items = self.0.iter().map(|(state, seconds)| format!("{state}={seconds}"));
        f.write_str(&items.collect::<Vec<_>>().join(","))
    }
}

impl Serialize for StateTimeouts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter())
    }
}

impl<'de> Deserialize<'de> for StateTimeouts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut timeouts = StateTimeouts::default();
        for (state, seconds) in BTreeMap::<String, u32>::deserialize(deserializer)? {
            timeouts.set(&state, seconds).map_err(serde::de::Error::custom)?;
        }
        Ok(timeouts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_text_and_as_json() {
        let timeouts: StateTimeouts = "fin_wait=30,established=3600".parse().unwrap();
        assert_eq!(timeouts.to_string(), "established=3600,fin_wait=30");
        let json = serde_json::to_string(&timeouts).unwrap();
        assert_eq!(json, r#"{"established":3600,"fin_wait":30}"#);
        assert_eq!(serde_json::from_str::<StateTimeouts>(&json).unwrap(), timeouts);
        for (text, fault) in [
            ("", "\"\" is not of the form STATE=SECONDS"),
            ("udp", "\"udp\" is not of the form STATE=SECONDS"),
            ("udp=x", "\"x\" is no number of seconds"),
            ("udp=0", "a timeout has 1 to 2678400 seconds"),
            ("udp=2678401", "a timeout has 1 to 2678400 seconds"),
            (
                "syn=1",
                "there is no state \"syn\", only none, established, syn_sent, syn_recv, fin_wait, time_wait, close, \
                      close_wait, last_ack, listen, synack, udp",
            ),
        ] {
            assert_eq!(text.parse::<StateTimeouts>(), Err(fault.to_owned()), "{text:?}");
        }
        assert!(serde_json::from_str::<StateTimeouts>(r#"{"udp":0}"#).is_err());
    }
}
