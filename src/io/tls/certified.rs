//! Records by rustls: connections whose ends show certificates.
//!
//! The unbuffered interface of rustls is used, so that records stand in memory of ours, sized by what the connection does,
//! and are encrypted when they can be sent and not before.

use std::sync::{Arc, PoisonError};

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use rustls::{ClientConfig, CommonState, Error, ServerConfig};

use super::stream::{Engine, Flow, OVERHEAD_BYTES};
use super::verify::{listed, names};
use super::{End, Paths, Said, TlsError, words};

/// Types of records (RFC 8446, section 5.1).
const CHANGE_CIPHER_SPEC: u8 = 20;
const HANDSHAKE: u8 = 22;

/// See the module.
pub struct Certified {
    side: Side,
    said: Said,
    paths: Paths,
}

enum Side {
    Server(Box<UnbufferedServerConnection>),
    Client(Box<UnbufferedClientConnection>),
}

/// What to do once writing is possible.
enum Write<'a> {
    Nothing,
    Bytes(&'a [u8]),
    CloseNotify,
}

/// What a step works on beside the connection itself.
struct Job<'a, 'w> {
    flow: &'a mut Flow,
    write: Write<'w>,
}

impl Certified {
    pub fn server(config: Arc<ServerConfig>, said: Said, paths: Paths) -> Result<Certified, TlsError> {
        let made = UnbufferedServerConnection::new(config);
        let side = made.map(|made| Side::Server(Box::new(made))).map_err(|error| TlsError(error.to_string()))?;
        Ok(Certified { side, said, paths })
    }

    pub fn client(
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        said: Said,
        paths: Paths,
    ) -> Result<Certified, TlsError> {
        let made = UnbufferedClientConnection::new(config, name);
        let side = made.map(|made| Side::Client(Box::new(made))).map_err(|error| TlsError(error.to_string()))?;
        Ok(Certified { side, said, paths })
    }

    fn state(&self) -> &CommonState {
        match &self.side {
            Side::Server(connection) => connection,
            Side::Client(connection) => connection,
        }
    }

    fn end(&self) -> End {
        match &self.side {
            Side::Server(_) => End::Server,
            Side::Client(_) => End::Client,
        }
    }

    /// Goes on until more is needed from the peer; what is to be written is written on the way.
    fn run(&mut self, flow: &mut Flow, mut write: Write<'_>) -> Result<(), Error> {
        loop {
            // Taken out while it is read, for what is read goes into the same flow: it stays where it is in memory.
            let mut incoming = std::mem::take(&mut flow.incoming);
            let mut job = Job { flow, write: std::mem::replace(&mut write, Write::Nothing) };
            let (discard, again) = match &mut self.side {
                Side::Server(connection) => job.step(connection.process_tls_records(&mut incoming)),
                Side::Client(connection) => job.step(connection.process_tls_records(&mut incoming)),
            };
            write = job.write;
            incoming.drain(..discard);
            flow.incoming = incoming;
            if !again? {
                // A byte that was neither encrypted nor refused would be missing in the stream.
                return if matches!(write, Write::Bytes(_)) { Err(Error::EncryptError) } else { Ok(()) };
            }
        }
    }

    /// The alert that tells the peer what is wrong with it, if there is one, and what of the handshake precedes it.
    fn gather_alert(&mut self, flow: &mut Flow) {
        fn take<D>(status: UnbufferedStatus<'_, '_, D>, outgoing: &mut Vec<u8>) -> Option<u8> {
            let Ok(ConnectionState::EncodeTlsData(mut data)) = status.state else { return None };
            let start = outgoing.len();
            append(outgoing, 0, |room| encoded(data.encode(room)));
            outgoing.get(start).copied()
        }
        loop {
            let (incoming, outgoing) = (&mut flow.incoming, &mut flow.outgoing);
            let kind = match &mut self.side {
                Side::Server(connection) => take(connection.process_tls_records(incoming), outgoing),
                Side::Client(connection) => take(connection.process_tls_records(incoming), outgoing),
            };
            // After an alert the library must not be asked again; encrypted it cannot be told from anything else.
            if !kind.is_some_and(|kind| [CHANGE_CIPHER_SPEC, HANDSHAKE].contains(&kind)) {
                return;
            }
        }
    }
}

impl Engine for Certified {
    fn read(&mut self, flow: &mut Flow) -> Result<(), String> {
        *self.said.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.run(flow, Write::Nothing).map_err(|error| {
            let said = self.said.lock().unwrap_or_else(PoisonError::into_inner).take();
            let text = words::failure(&error, said, &self.paths, flow.established, self.end());
            self.gather_alert(flow);
            text
        })
    }

    fn write(&mut self, flow: &mut Flow, bytes: &[u8]) -> Result<(), String> {
        let written = self.run(flow, Write::Bytes(bytes));
        written.map_err(|error| words::failure(&error, None, &self.paths, flow.established, self.end()))
    }

    fn close(&mut self, flow: &mut Flow) {
        // Who cannot be told so any more will see a stream that was cut off, which is then true.
        let _ = self.run(flow, Write::CloseNotify);
    }

    fn is_handshaking(&self) -> bool {
        self.state().is_handshaking()
    }

    fn peer(&self) -> Option<String> {
        let certificates = self.state().peer_certificates()?;
        Some(listed(&names(certificates.first()?)))
    }
}

impl Job<'_, '_> {
    /// Takes one state; how much was read, and whether there is more to do.
    fn step<D>(&mut self, status: UnbufferedStatus<'_, '_, D>) -> (usize, Result<bool, Error>) {
        let discard = status.discard;
        let state = match status.state {
            Ok(state) => state,
            Err(error) => return (discard, Err(error)),
        };
        let again = match state {
            ConnectionState::EncodeTlsData(mut data) => {
                append(&mut self.flow.outgoing, 0, |room| encoded(data.encode(room)));
                Ok(true)
            }
            // What is to be transmitted stands in order in `outgoing`.
            ConnectionState::TransmitTlsData(data) => {
                data.done();
                Ok(true)
            }
            ConnectionState::ReadTraffic(mut traffic) => self.read(&mut traffic),
            ConnectionState::PeerClosed => {
                self.flow.peer_closed = true;
                Ok(true)
            }
            ConnectionState::WriteTraffic(mut traffic) => {
                match std::mem::replace(&mut self.write, Write::Nothing) {
                    Write::Nothing => {}
                    Write::Bytes(bytes) => {
                        let room = bytes.len() + OVERHEAD_BYTES;
                        if !append(&mut self.flow.outgoing, room, |room| needs(traffic.encrypt(bytes, room))) {
                            return (discard, Err(Error::EncryptError));
                        }
                    }
                    Write::CloseNotify => {
                        append(&mut self.flow.outgoing, OVERHEAD_BYTES, |room| needs(traffic.queue_close_notify(room)));
                    }
                }
                Ok(false)
            }
            // Early data is never offered, so none is read.
            _ => Ok(false),
        };
        (discard, again)
    }

    fn read<D>(&mut self, traffic: &mut rustls::unbuffered::ReadTraffic<'_, '_, D>) -> Result<bool, Error> {
        while let Some(record) = traffic.next_record() {
            let payload = record?.payload;
            if !payload.is_empty() {
                self.flow.hold(payload.to_vec());
            }
        }
        Ok(true)
    }
}

/// Appends what `make` writes, which says how much room it needs if there is too little; false when it makes nothing,
/// as a connection whose keys are used up.
fn append(out: &mut Vec<u8>, room: usize, mut make: impl FnMut(&mut [u8]) -> Result<usize, Option<usize>>) -> bool {
    let start = out.len();
    out.resize(start + room, 0);
    let made = match make(&mut out[start..]) {
        Err(Some(required)) => {
            out.resize(start + required, 0);
            make(&mut out[start..])
        }
        other => other,
    };
    out.truncate(start + made.unwrap_or(0));
    made.is_ok()
}

fn encoded(made: Result<usize, EncodeError>) -> Result<usize, Option<usize>> {
    match made {
        Err(EncodeError::InsufficientSize(size)) => Err(Some(size.required_size)),
        other => other.map_err(|_| None),
    }
}

fn needs(made: Result<usize, EncryptError>) -> Result<usize, Option<usize>> {
    match made {
        Err(EncryptError::InsufficientSize(size)) => Err(Some(size.required_size)),
        other => other.map_err(|_| None),
    }
}
