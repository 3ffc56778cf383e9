//! `[tls]` and what depends on it: which links have to be secure, what NBD clients may do without, and what of it is told to
//! who may not have meant it. Pure.

use std::path::PathBuf;

use super::{AuxConfig, DrConfig, PrimaryConfig, TablePlace, Tls};
use crate::cluster::toml::{Reader, Section};
use crate::core::address::Address;
use crate::core::modes::{NO_SHARED_KEYS, TlsMode};
use crate::core::peer::Paths;

const MODES: [(&str, TlsMode); 3] =
    [("off", TlsMode::Off), ("optional", TlsMode::Optional), ("required", TlsMode::Required)];
const YES_NO: [(&str, bool); 2] = [("no", false), ("yes", true)];

/// `[tls]`, or `tls = "off"` above the first section; and the file of the keys that NBD clients share.
pub(super) fn read(r: &mut Reader<'_>, root: &Section<'_>) -> (Tls, Option<PathBuf>) {
    if let Some(text) = root.text("tls") {
        if text != "off" {
            r.error(root, "tls", format!("is {text:?}: write \"off\", or a section [tls] with ca, cert and key"));
        }
        return (Tls::Off, None);
    }
    let Some(s) = r.child(root, "tls", &["ca", "cert", "key", "psk"]) else { return (Tls::Absent, None) };
    let psk = shared_keys(r, &s);
    if psk.is_some() && !["ca", "cert", "key"].iter().any(|key| s.has(key)) {
        // Clients have their keys; of links nothing is said.
        return (Tls::Absent, psk);
    }
    let mut path = |key: &str, what: &str| -> PathBuf { r.required(&s, key, what).unwrap_or_default().into() };
    let ca = path("ca", "the certificate of the CA that signs those of all hosts (`farshore certs` makes one)");
    let cert = path("cert", "the certificate of this host, for its role in this group");
    let key = path("key", "the private key of that certificate");
    (Tls::Certificates(Paths { ca, own: Some((cert, key)) }), psk)
}

fn shared_keys(r: &mut Reader<'_>, s: &Section<'_>) -> Option<PathBuf> {
    let text = r.string(s, "psk")?;
    if text.is_empty() {
        r.error(s, "psk", "is empty: write the path of a file with the keys of NBD clients, or leave it out");
    } else if let Some(why) = NO_SHARED_KEYS {
        r.error(s, "psk", why);
    }
    Some(text.into())
}

/// `tls` and `client_certificates` of a section that NBD clients connect to; `psk`: they share keys instead.
pub(super) fn of_clients(r: &mut Reader<'_>, s: &Section<'_>, tls: &Tls, psk: bool) -> (TlsMode, bool) {
    let possible = psk || matches!(tls, Tls::Certificates(_));
    let mode = match s.has("tls") {
        true => r.word(s, "tls", &MODES),
        false if possible => TlsMode::Required,
        false => TlsMode::Off,
    };
    if mode != TlsMode::Off && !possible {
        r.error(
            s,
            "tls",
            "needs certificates: add a section [tls] with ca, cert and key (`farshore certs` makes them)",
        );
    }
    let known = r.word(s, "client_certificates", &YES_NO);
    let contradiction = match mode {
        _ if !known => None,
        TlsMode::Off => Some("are shown within TLS only, which is off here: write tls = \"required\" beside it"),
        _ if psk => {
            Some("are not asked for where [tls] psk has NBD clients show a shared key: leave one of the two out")
        }
        TlsMode::Optional => Some(
            "are not asked of who comes without TLS, which tls = \"optional\" lets in: write tls = \"required\", or leave \
             client_certificates out",
        ),
        TlsMode::Required => None,
    };
    if let Some(text) = contradiction {
        r.error(s, "client_certificates", text);
    }
    (mode, known)
}

/// Whoever can be reached from outside and asks for nothing is told so.
pub(super) fn check_open(
    r: &mut Reader<'_>,
    root: &Section<'_>,
    (primary, aux, dr): (Option<&PrimaryConfig>, Option<&AuxConfig>, Option<&DrConfig>),
    psk: bool,
) {
    let from_outside = |addresses: &[Address]| {
        let outside: Vec<String> = addresses.iter().filter(|one| !one.is_local()).map(ToString::to_string).collect();
        (!outside.is_empty()).then(|| outside.join(", "))
    };
    let primary_serves = primary.map(|it| ("primary", "listen", &it.listen, it.tls, it.client_certificates));
    let dr_serves = dr.map(|it| ("dr", "export", &it.export, it.tls, it.client_certificates));
    for (section, key, addresses, mode, known) in primary_serves.into_iter().chain(dr_serves) {
        let shown = mode == TlsMode::Required && (known || psk);
        let Some(outside) = from_outside(addresses).filter(|_| !shown) else { continue };
        let remedy = match (mode, psk) {
            (_, true) => "write tls = \"required\"",
            (TlsMode::Required, false) => "write client_certificates = \"yes\"",
            _ => "write tls = \"required\" and client_certificates = \"yes\"",
        };
        let text = format!(
            "{outside}: whoever reaches that from outside this host can read and write the volumes, and has to show nothing: \
             {remedy} in [{section}] (README, \"TLS\"), or serve on loopback and unix sockets only"
        );
        r.warn_under(root, section, key, text);
    }
    let own_aux = aux.filter(|aux| aux.own.is_some()).and_then(|aux| aux.metrics.as_ref());
    let of_dr = dr.and_then(|dr| dr.metrics.as_ref());
    let metrics = [("primary", primary.and_then(|it| it.metrics.as_ref())), ("aux", own_aux), ("dr", of_dr)];
    for (section, address) in metrics {
        let Some(outside) = address.and_then(|address| from_outside(std::slice::from_ref(address))) else { continue };
        let text = format!(
            "{outside}: whoever reaches that from outside this host can read status and figures of this role, without a \
             password: serve them on loopback, or on a network that you trust"
        );
        r.warn_under(root, section, "metrics", text);
    }
}

/// A link that leaves its host is secure, or declared to be plain.
pub(super) fn check_links(
    r: &mut Reader<'_>,
    root: &Section<'_>,
    tls: &Tls,
    aux: Option<&AuxConfig>,
    dr: Option<&DrConfig>,
) {
    if *tls != Tls::Absent {
        return;
    }
    let own = aux.and_then(|aux| aux.own.as_ref()).map(|own| &own.listen);
    let table = match aux.map(|aux| &aux.table) {
        Some(TablePlace::Own(address)) => Some(address),
        Some(TablePlace::Nbd(uri)) if uri.tls.is_none() && !uri.address.is_local() => {
            let text = "is reached without TLS: anybody on the way can read and forge it (write nbds:// if it can)";
            r.warn_under(root, "aux", "table", text);
            None
        }
        _ => None,
    };
    let ways = dr.into_iter().flat_map(DrConfig::ways).collect();
    let links = [("aux", table.or(own).into_iter().collect::<Vec<_>>(), own), ("dr", ways, dr.map(|dr| &dr.listen))];
    for (section, reached, listen) in links {
        let Some(address) = reached.into_iter().chain(listen).find(|address| !address.is_local()) else { continue };
        let key = match dr {
            _ if Some(address) == listen => "listen",
            Some(dr) if section == "dr" && dr.paths.contains(address) => "paths",
            _ => "address",
        };
        let text = format!(
            "{address} is a link to another host, and without certificates anybody on the way can read and forge it: \
             add [tls] with ca, cert and key (`farshore certs` makes them), or write tls = \"off\" above the first \
             section, for a network that nobody else is in"
        );
        r.error_under(root, section, key, text);
    }
}
