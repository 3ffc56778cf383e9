//! What of a primary is secured, and with which certificates or keys: NBD clients, the link to DR, the connection to the table.

use std::collections::HashSet;

use crate::cluster::config::Config;
use crate::core::address::Address;
use crate::core::modes::TlsMode;
use crate::core::peer::Role;
use crate::io::tls::{Acceptor, Clients, Connector, Server, TlsError, Validity, Versions};
use crate::nbd::region::{Region, TableTarget};

/// See the module.
#[derive(Default)]
pub struct Security {
    nbd: Option<Acceptor>,
    mode: TlsMode,
    /// Listeners on unix sockets.
    on_unix: HashSet<usize>,
    pub table: Option<Connector>,
    pub dr: Option<Connector>,
}

impl Security {
    /// Loads the certificates of the primary.
    ///
    /// # Errors
    /// Which cannot be used.
    pub fn of_primary(config: &Config, table: &TableTarget) -> Result<Security, TlsError> {
        let own = config.name(Role::Primary);
        let certificates = config.certificates(Role::Primary);
        let table = Region::connector(table, certificates.as_ref(), &own)?;
        let dr = match &certificates {
            Some(paths) => {
                let server = Server::Named(config.name(Role::Dr));
                Some(Connector::new(paths, Some(&own), server, Versions::Newest)?)
            }
            None => None,
        };
        let settings = config.primary.as_ref().map(|primary| (primary.tls, primary.client_certificates));
        Ok(Security { table, dr, ..Security::of_clients(config, Role::Primary, settings)? })
    }

    /// Loads the certificates or shared keys of a promoted DR, which has no links.
    ///
    /// # Errors
    /// Which cannot be used.
    pub fn of_promoted(config: &Config) -> Result<Security, TlsError> {
        let settings = config.dr.as_ref().map(|dr| (dr.tls, dr.client_certificates));
        Security::of_clients(config, Role::Dr, settings)
    }

    fn of_clients(config: &Config, role: Role, settings: Option<(TlsMode, bool)>) -> Result<Security, TlsError> {
        let (mode, known) = settings.unwrap_or_default();
        if let Some(file) = config.shared_keys(role) {
            let nbd = Some(Acceptor::with_keys(&file)?);
            return Ok(Security { nbd, mode, ..Security::default() });
        }
        let (TlsMode::Optional | TlsMode::Required, Some(paths)) = (mode, config.certificates(role)) else {
            return Ok(Security::default());
        };
        let clients = if known { Clients::OfGroup(config.group.name.clone()) } else { Clients::Anybody };
        let nbd = Acceptor::new(&paths, Some(&config.name(role)), clients, Versions::Wide)?;
        Ok(Security { nbd: Some(nbd), mode, ..Security::default() })
    }

    /// How long this host's certificate is good.
    #[must_use]
    pub fn validity(&self) -> Option<Validity> {
        let dials = self.dr.as_ref().or(self.table.as_ref()).and_then(Connector::validity);
        dials.or_else(|| self.nbd.as_ref().and_then(Acceptor::validity))
    }

    /// A listener for NBD clients was opened.
    pub fn listening(&mut self, listener: usize, address: &Address) {
        if let Address::Unix(_) = address {
            self.on_unix.insert(listener);
        }
    }

    /// What TLS is to a client of a listener.
    pub fn of_client(&self, listener: usize) -> (TlsMode, Option<&Acceptor>) {
        let mode = if self.on_unix.contains(&listener) { self.mode.on_unix() } else { self.mode };
        (mode, self.nbd.as_ref())
    }
}
