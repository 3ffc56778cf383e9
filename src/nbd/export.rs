//! What a client is told about an export, and what its requests are checked against.

use crate::limits::PAYLOAD_BYTES_MAX;
use crate::nbd::protocol::*;
use crate::nbd::reply::Style;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    pub name: String,
    pub description: String,
    /// Bytes.
    pub size: u64,
    pub read_only: bool,
    /// Offsets and lengths are multiples of it; a power of two.
    pub block_min: u32,
    pub block_preferred: u32,
    /// Longest payload of one request, bytes.
    pub block_max: u32,
    pub multi_conn: bool,
    pub trim: bool,
    pub zeroes: bool,
    /// Zeroing that would not be fast is refused at once to who asks for that.
    pub fast_zero: bool,
    pub cache: bool,
    /// It can say which parts have no storage: the metadata context `base:allocation`.
    pub allocation: bool,
    pub fua: bool,
    pub flush: bool,
}

impl Export {
    /// The flags of the transmission phase ("Transmission flags"). `contexts`: the client has selected some.
    #[must_use]
    pub fn flags(&self, style: Style, contexts: bool) -> u16 {
        let changes = !self.read_only;
        let offered = [
            (self.read_only, READ_ONLY),
            (self.flush, SEND_FLUSH),
            (self.fua, SEND_FUA),
            (self.trim && changes, SEND_TRIM),
            (self.zeroes && changes, SEND_WRITE_ZEROES),
            (style != Style::Simple, SEND_DF),
            (self.multi_conn, CAN_MULTI_CONN),
            (self.cache, SEND_CACHE),
            (self.zeroes && self.fast_zero && changes, SEND_FAST_ZERO),
            (style == Style::Extended && contexts, BLOCK_STATUS_PAYLOAD),
        ];
        offered.iter().filter(|(on, _)| *on).fold(HAS_FLAGS, |flags, (_, flag)| flags | flag)
    }

    /// Whether a client that knows nothing of size constraints keeps to them ("Size constraints").
    #[must_use]
    pub fn has_default_sizes(&self) -> bool {
        self.block_min == 1 && self.block_max >= PAYLOAD_BYTES_MAX
    }
}
