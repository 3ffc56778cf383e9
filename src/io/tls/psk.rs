//! Records by OpenSSL: NBD clients that show a shared key (TLS-PSK), which rustls does not have; and us as such a client.
//!
//! ```text
//!   Flow.incoming ─► Wire.read ─► handshake, SSL_read ─► Flow.held
//!                                  SSL_write ─► Wire.write ─► Flow.outgoing
//! ```
//!
//! OpenSSL sees a stream in memory and no socket: what was received is lent to it for as long as it is asked to do
//! something. It copies each record once on its way in and once on its way out, into buffers that it drops between records.
//!
//! - TLS 1.3 with a key exchange beside the shared key, and of 1.2 what has the same: DHE-PSK and ECDHE-PSK, with AEAD only.
//!   Who learns a shared key later cannot read what was recorded before.
//! - A name that there is not has a key that nobody has: a client hears the same as with a wrong key, and our log says which.
//! - Nothing is resumed and nothing negotiated anew. New keys, which TLS 1.3 has, are taken, and made in time.

use std::ffi::{c_int, c_void};
use std::fmt;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use openssl::bn::BigNum;
use openssl::dh::Dh;
use openssl::error::ErrorStack;
use openssl::ex_data::Index;
use openssl::ssl::{
    Error, ErrorCode, Ssl, SslContext, SslContextBuilder, SslMethod, SslMode, SslOptions, SslRef, SslSessionCacheMode,
    SslStream, SslVerifyMode, SslVersion,
};

use super::files::{Stamp, wrong};
use super::keys::{Keys, shown};
use super::stream::{BATCH_BYTES, Engine, Flow, Tls};
use super::{TlsError, words};
use crate::limits::TLS_HANDSHAKE_BYTES_MAX;

/// A shared key goes with the hash of its cipher, which is SHA-256 where nothing else was agreed on (RFC 8446, 4.2.11).
const CIPHERS_1_3: &str = "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256";
const CIPHERS_1_2: &str = "ECDHE-PSK-CHACHA20-POLY1305:DHE-PSK-CHACHA20-POLY1305:\
                           DHE-PSK-AES256-GCM-SHA384:DHE-PSK-AES128-GCM-SHA256";
/// Groups of 2048 bits and more, keys of 112 bits and more.
const SECURITY_LEVEL: u32 = 2;
/// Records that one key may encrypt: of AES-GCM 2^24.5 are possible (RFC 8446, section 5.5).
const RECORDS_MAX: u64 = if cfg!(test) { 100 } else { 1 << 23 };
/// Records that wait to be sent, bytes: one batch, and answers to a peer that asks for new keys. More answers than that
/// are those of a peer that asks and does not read.
const PENDING_BYTES_MAX: usize = 2 * BATCH_BYTES;
/// `ERR_LIB_SSL` (openssl/err.h).
const LIBRARY_SSL: i32 = 20;

/// One side of connections whose ends share keys of a file. Clones share what they have loaded.
#[derive(Clone)]
pub struct Keyed {
    path: PathBuf,
    /// The name of the key that we show; `None`: we are shown any of them.
    name: Option<Arc<str>>,
    kept: Arc<Mutex<Kept>>,
}

struct Kept {
    /// Of the file as it was last looked at, usable or not.
    stamp: Stamp,
    context: SslContext,
}

/// What a client has said that it is.
struct Claim {
    name: Vec<u8>,
    known: bool,
}

/// One connection.
pub struct Connection {
    stream: SslStream<Wire>,
    path: PathBuf,
    /// As in [`Keyed`].
    own: Option<Arc<str>>,
    /// Received before the handshake was done, bytes.
    handshake_bytes: usize,
    /// Made under the present key.
    records: u64,
}

/// What OpenSSL reads from and writes to.
#[derive(Default)]
pub struct Wire {
    pub incoming: Vec<u8>,
    /// So many bytes of it were read.
    read: usize,
    pub outgoing: Vec<u8>,
}

impl fmt::Debug for Keyed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyed({})", self.path.display())
    }
}

impl Keyed {
    /// Loads the keys, of which we show that of `name`, or are shown any.
    ///
    /// # Errors
    /// Why the file cannot be used.
    pub fn new(path: &Path, name: Option<&str>) -> Result<Keyed, TlsError> {
        let kept = Kept::load(path, name)?;
        Ok(Keyed { path: path.into(), name: name.map(Arc::from), kept: Arc::new(Mutex::new(kept)) })
    }

    /// A connection at the beginning of its handshake.
    ///
    /// # Errors
    /// When OpenSSL does not work.
    pub fn begin(&self) -> Result<Tls, TlsError> {
        let unusable = |error: ErrorStack| TlsError(format!("TLS: OpenSSL makes no connection: {error}"));
        let mut ssl = Ssl::new(&self.context()).map_err(unusable)?;
        match self.name {
            Some(_) => ssl.set_connect_state(),
            None => ssl.set_accept_state(),
        }
        let stream = SslStream::new(ssl, Wire::default()).map_err(unusable)?;
        let (path, own) = (self.path.clone(), self.name.clone());
        Ok(Tls::new(Connection { stream, path, own, handshake_bytes: 0, records: 0 }))
    }

    /// That of the file as it is now, or as it was when it could last be used.
    fn context(&self) -> SslContext {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = Stamp::of_file(&self.path);
        if stamp != kept.stamp {
            kept.stamp = stamp;
            match Kept::load(&self.path, self.name.as_deref()) {
                Ok(loaded) => {
                    *kept = loaded;
                    tracing::info!("shared keys were read anew from {}", self.path.display());
                }
                Err(error) => {
                    tracing::error!("shared keys have changed and cannot be used, the old ones stay: {error}");
                }
            }
        }
        kept.context.clone()
    }
}

impl Kept {
    /// The stamp is older than what was read, never newer: a change in between is seen the next time.
    fn load(path: &Path, name: Option<&str>) -> Result<Kept, TlsError> {
        let stamp = Stamp::of_file(path);
        let keys = Keys::load(path)?;
        if let Some(name) = name
            && !keys.of(name.as_bytes()).1
        {
            return Err(wrong(path, &format!("has no key of {}, which is to be shown", shown(name.as_bytes()))));
        }
        let unusable = |error: ErrorStack| TlsError(format!("OpenSSL cannot use shared keys: {error}"));
        let made = match name {
            Some(name) => connecting(keys, name.into()),
            None => accepting(keys),
        };
        Ok(Kept { stamp, context: made.map_err(unusable)? })
    }
}

/// What both sides have in common.
fn builder(method: SslMethod) -> Result<SslContextBuilder, ErrorStack> {
    let mut builder = SslContext::builder(method)?;
    builder.set_security_level(SECURITY_LEVEL);
    builder.set_min_proto_version(Some(SslVersion::TLS1_2))?;
    builder.set_max_proto_version(Some(SslVersion::TLS1_3))?;
    builder.set_ciphersuites(CIPHERS_1_3)?;
    builder.set_cipher_list(CIPHERS_1_2)?;
    builder.set_options(
        SslOptions::NO_TICKET
            | SslOptions::NO_RENEGOTIATION
            | SslOptions::NO_COMPRESSION
            | SslOptions::CIPHER_SERVER_PREFERENCE,
    );
    builder.set_session_cache_mode(SslSessionCacheMode::OFF);
    builder.set_mode(SslMode::RELEASE_BUFFERS | SslMode::AUTO_RETRY);
    Ok(builder)
}

fn connecting(keys: Keys, name: String) -> Result<SslContext, ErrorStack> {
    let mut builder = builder(SslMethod::tls_client())?;
    // No certificate is believed: who does not have the key could be anybody.
    builder.set_verify(SslVerifyMode::PEER);
    builder.set_psk_client_callback(move |_, _, shown, room| {
        let (key, _) = keys.of(name.as_bytes());
        let (Some(shown), Some(room)) = (shown.get_mut(..=name.len()), room.get_mut(..key.len())) else {
            return Ok(0);
        };
        shown[..name.len()].copy_from_slice(name.as_bytes());
        shown[name.len()] = 0;
        room.copy_from_slice(key);
        Ok(key.len())
    });
    Ok(builder.build())
}

fn accepting(keys: Keys) -> Result<SslContext, ErrorStack> {
    let mut builder = builder(SslMethod::tls_server())?;
    let group = Dh::from_pqg(BigNum::get_rfc3526_prime_3072()?, None, BigNum::from_u32(2)?)?;
    builder.set_tmp_dh(&group)?;
    builder.set_num_tickets(0)?;
    let index = claims()?;
    builder.set_psk_server_callback(move |ssl, name, room| {
        let name = name.unwrap_or_default();
        let (key, known) = keys.of(name);
        ssl.set_ex_data(index, Claim { name: name.to_vec(), known });
        // No key of a file is longer than what every OpenSSL has room for.
        room.get_mut(..key.len()).map_or(Ok(0), |room| {
            room.copy_from_slice(key);
            Ok(key.len())
        })
    });
    Ok(builder.build())
}

/// Where a connection keeps what its client says that it is.
fn claims() -> Result<Index<Ssl, Claim>, ErrorStack> {
    static INDEX: OnceLock<Index<Ssl, Claim>> = OnceLock::new();
    match INDEX.get() {
        Some(index) => Ok(*index),
        None => Ssl::new_ex_index().map(|index| *INDEX.get_or_init(|| index)),
    }
}

impl Engine for Connection {
    fn read(&mut self, flow: &mut Flow) -> Result<(), String> {
        let established = flow.established;
        let (received, pending) = (flow.incoming.len(), flow.outgoing.len());
        if let Err(error) = self.lend(flow, receive) {
            return Err(self.failure(&error, established));
        }
        if self.is_handshaking() && !established {
            // OpenSSL has all of it, in buffers of its own.
            self.handshake_bytes += received;
            if self.handshake_bytes > TLS_HANDSHAKE_BYTES_MAX {
                return Err("TLS: a message of the handshake that is too long".into());
            }
        }
        if flow.outgoing.len() > pending.max(PENDING_BYTES_MAX) {
            return Err("TLS: the peer asks for new keys again and again, and does not read the answers".into());
        }
        Ok(())
    }

    fn write(&mut self, flow: &mut Flow, bytes: &[u8]) -> Result<(), String> {
        self.records += 1;
        if self.records > RECORDS_MAX {
            self.renew()?;
        }
        let written = self.lend(flow, |stream, _| stream.ssl_write(bytes));
        match written {
            Ok(count) if count == bytes.len() => Ok(()),
            Ok(_) => Err("TLS: OpenSSL has taken a part of a record".into()),
            Err(error) => Err(self.failure(&error, true)),
        }
    }

    fn close(&mut self, flow: &mut Flow) {
        // Who cannot be told so any more will see a stream that was cut off, which is then true.
        let _ = self.lend(flow, |stream, _| stream.shutdown());
    }

    fn is_handshaking(&self) -> bool {
        !self.stream.ssl().is_init_finished()
    }

    fn peer(&self) -> Option<String> {
        self.claim().map(|claim| format!("the shared key of {}", shown(&claim.name)))
    }

    fn cut_off(&self) -> &'static str {
        match self.own {
            // GnuTLS says nothing when it does not know the key.
            Some(_) => {
                "closed by the peer during the TLS handshake, as by one that does not have the shared key shown to it"
            }
            None => "closed by the peer during the TLS handshake",
        }
    }
}

impl Connection {
    /// Lets OpenSSL work on a flow. What was received stays where it is in memory, and what was read of it goes.
    fn lend<T>(&mut self, flow: &mut Flow, work: impl FnOnce(&mut SslStream<Wire>, &mut Flow) -> T) -> T {
        let wire = self.stream.get_mut();
        wire.incoming = std::mem::take(&mut flow.incoming);
        wire.outgoing = std::mem::take(&mut flow.outgoing);
        let result = work(&mut self.stream, flow);
        let wire = self.stream.get_mut();
        wire.incoming.drain(..std::mem::take(&mut wire.read));
        flow.incoming = std::mem::take(&mut wire.incoming);
        flow.outgoing = std::mem::take(&mut wire.outgoing);
        result
    }

    fn claim(&self) -> Option<&Claim> {
        self.stream.ssl().ex_data(claims().ok()?)
    }

    /// The next record is made under a new key, if this version of TLS has that.
    fn renew(&mut self) -> Result<(), String> {
        let ssl = self.stream.ssl();
        if ssl.version2() == Some(SslVersion::TLS1_3) {
            if !key_update(ssl) {
                return Err("TLS: OpenSSL makes no new key for this connection, and the old one is used up".into());
            }
            self.records = 1;
        } else if ssl.current_cipher().is_none_or(|cipher| cipher.name().contains("GCM")) {
            return Err("TLS: the key of this connection is used up: TLS 1.2 has no new ones, TLS 1.3 has".into());
        }
        Ok(())
    }

    /// Why the connection is of no more use, in words.
    fn failure(&self, error: &Error, established: bool) -> String {
        let all = error.ssl_error().map_or(&[] as &[_], ErrorStack::errors);
        // That of TLS: what lies below says which operation failed, and not what that means.
        let found = all.iter().find(|error| error.library_code() == LIBRARY_SSL).or(all.first());
        let code = found.map_or(0, openssl::error::Error::reason_code);
        let reason = found.and_then(openssl::error::Error::reason).unwrap_or("no reason given");
        words::shared_key(&words::SharedKey {
            code,
            reason,
            established,
            own: self.own.as_ref().map(|name| shown(name.as_bytes())),
            name: self.claim().map(|claim| (shown(&claim.name), claim.known)),
            path: &self.path,
        })
    }
}

/// Goes on until more is needed from the peer.
fn receive(stream: &mut SslStream<Wire>, flow: &mut Flow) -> Result<(), Error> {
    let waits = |error: Error| if error.code() == ErrorCode::WANT_READ { Ok(()) } else { Err(error) };
    if !flow.established
        && !stream.ssl().is_init_finished()
        && let Err(error) = stream.do_handshake()
    {
        return waits(error);
    }
    loop {
        // The first byte brings the whole record, of which is then known how long it is.
        let mut first = [0];
        match stream.ssl_read(&mut first) {
            Ok(_) => {}
            Err(error) if error.code() == ErrorCode::ZERO_RETURN => {
                flow.peer_closed = true;
                return Ok(());
            }
            Err(error) => return waits(error),
        }
        let rest = stream.ssl().pending();
        let mut plain = vec![0; 1 + rest];
        plain[0] = first[0];
        if rest > 0 {
            let read = stream.ssl_read(&mut plain[1..])?;
            plain.truncate(1 + read);
        }
        flow.hold(plain);
    }
}

// SAFETY: as openssl/ssl.h of OpenSSL 1.1.1 and later declares it; the package `openssl` links it, and has no name for it.
unsafe extern "C" {
    pub fn SSL_key_update(ssl: *mut c_void, update_type: c_int) -> c_int;
}

/// Has the next record preceded by a change of our key (RFC 8446, section 4.6.3); false where that cannot be.
fn key_update(ssl: &SslRef) -> bool {
    /// `SSL_KEY_UPDATE_NOT_REQUESTED`: the peer's key stays.
    const OURS_ONLY: c_int = 0;
    // SAFETY: an `SslRef` is nothing but the place of an `SSL` of OpenSSL, which lives as long as the reference, and is
    // used by this thread alone, for it is that of a stream of which the caller has the only reference.
    unsafe { SSL_key_update(std::ptr::from_ref(ssl).cast_mut().cast(), OURS_ONLY) == 1 }
}

impl Read for Wire {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let mut left = &self.incoming[self.read..];
        if left.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let bytes = left.read(room)?;
        self.read += bytes;
        Ok(bytes)
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.outgoing.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
