//! What is asked for when frames are to be seen.

use serde::{Deserialize, Serialize};

/// A capture. The answer, [`super::Response::Capture`], is followed by a stream of pcapng blocks on the same connection, without
/// lengths before them, until the peer shuts down its sending side or the director ends; then come the last blocks and the
/// end. Each device has three interfaces in it: `eth0 in`, `eth0 out`, `eth0 drop`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureSpec {
    /// The director's devices of which frames are wanted; all when there is none.
    #[serde(default)]
    pub interfaces: Vec<String>,
    /// Which frames, in the words of [`uvs_engine::capture::Filter::parse`].
    #[serde(default)]
    pub filter: String,
    /// Bytes wanted of each frame; 0 for all.
    #[serde(default)]
    pub snap: u32,
}
