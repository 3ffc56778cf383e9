//! `farshore certs`: a small private CA, and a certificate for each role of a group and for those who use its volumes.
//!
//! ```text
//!   DIR/ca-cert.pem  ca-key.pem                      the CA; its key belongs on no host of the group
//!   DIR/primary/  aux/  dr/     ca-cert.pem  cert.pem  key.pem
//!   DIR/client/                 ca-cert.pem  client-cert.pem  client-key.pem   (as libnbd and QEMU name them)
//! ```
//!
//! Nothing is overwritten, and nothing is kept of a run that fails. Keys are readable by their owner only.

use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use rustls::pki_types::ServerName;

use super::arguments::Certs;
use super::failure::Failure;
use super::files;
use crate::cluster::config::Config;
use crate::core::address::Address;
use crate::core::peer::{End, PeerName, Role};
use crate::io::tls::{self, Paths};

/// What is to be made.
#[derive(Clone, Debug)]
pub struct Plan {
    pub group: String,
    pub dir: PathBuf,
    /// How long certificates are valid.
    pub days: u32,
    /// The directory of an earlier run, whose CA signs again.
    pub ca: Option<PathBuf>,
    /// Names and addresses of the hosts of roles, for NBD clients, who look at these.
    pub hosts: Vec<(Role, String)>,
}

/// Links are begun by some roles and answered by others, and NBD clients come to most: what is made is good for both.
const BOTH: [End; 2] = [End::Client, End::Server];
/// How much longer the CA is valid than what it signs, days: certificates are renewed with the CA that hosts have.
const CA_DAYS: u32 = 3650;
/// How long certificates were valid when they are made: clocks differ.
const EARLIER: Duration = Duration::from_secs(3600);
const CA_CERT: &str = "ca-cert.pem";
const CA_KEY: &str = "ca-key.pem";

/// Makes the files, and says what to copy where.
pub fn run(options: &Certs, out: &mut dyn Write) -> Result<(), Failure> {
    let config = options.config.as_deref().map(files::load).transpose()?;
    let group = match (&options.group, &config) {
        (Some(group), _) => group.clone(),
        (None, Some(config)) => config.group.name.clone(),
        (None, None) => return Err(Failure::usage("name the group, or the configuration that does (--config FILE)")),
    };
    let mut hosts = config.as_ref().map(hosts_of).unwrap_or_default();
    for word in &options.hosts {
        hosts.push(host(word)?);
    }
    let plan = Plan { group, dir: options.dir.clone(), days: options.days, ca: options.ca.clone(), hosts };
    make(&plan)?;
    told(&plan, out)?;
    Ok(())
}

/// Makes the files.
///
/// # Errors
/// Exit status 3 when the directory is there already; otherwise what failed, with nothing left of it.
pub fn make(plan: &Plan) -> Result<(), Failure> {
    if plan.group.parse::<PeerName>().is_ok()
        || PeerName::new(&plan.group, Role::Dr).to_string().parse::<PeerName>().is_err()
    {
        return Err(Failure::usage(format!("{:?} is no name of a group", plan.group)));
    }
    match std::fs::DirBuilder::new().mode(0o700).create(&plan.dir) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Failure::refused(format!(
                "{} exists, and nothing in it is overwritten: name another --dir; to renew certificates with the CA \
                 in it, add --ca {}",
                plan.dir.display(),
                plan.dir.display()
            )));
        }
        Err(error) => return Err(failed(&plan.dir)(&error)),
    }
    fill(plan).inspect_err(|_| {
        // What was begun is of no use to anybody; the failure has its own words.
        let _ = std::fs::remove_dir_all(&plan.dir);
    })
}

fn fill(plan: &Plan) -> Result<(), Failure> {
    let (ca_cert, key) = match &plan.ca {
        Some(dir) => old_ca(dir)?,
        None => new_ca(plan)?,
    };
    let issuer = Issuer::new(ca_params(plan.days, &key), key);
    for role in Role::ALL {
        let dir = plan.dir.join(role.word());
        std::fs::DirBuilder::new().mode(0o700).create(&dir).map_err(|error| failed(&dir)(&error))?;
        let name = PeerName::new(&plan.group, role);
        let key = KeyPair::generate().map_err(|error| making(&error))?;
        let params = role_params(plan, &name)?;
        let cert = params.signed_by(&key, &issuer).map_err(|error| making(&error))?;
        let (cert_path, key_path) = own_files(&dir, role);
        write(&dir.join(CA_CERT), &ca_cert, 0o644)?;
        write(&cert_path, &cert.pem(), 0o644)?;
        write(&key_path, &key.serialize_pem(), 0o600)?;
        let paths = Paths { ca: dir.join(CA_CERT), own: Some((cert_path, key_path)) };
        if role != Role::Client {
            tls::check(&paths, Some(&name), &BOTH).map_err(|error| Failure::failed(error.to_string()))?;
        }
    }
    Ok(())
}

/// Where certificate and key of a role stand in its directory.
#[must_use]
pub fn own_files(dir: &Path, role: Role) -> (PathBuf, PathBuf) {
    match role {
        Role::Client => (dir.join("client-cert.pem"), dir.join("client-key.pem")),
        Role::Primary | Role::Aux | Role::Dr => (dir.join("cert.pem"), dir.join("key.pem")),
    }
}

fn new_ca(plan: &Plan) -> Result<(String, KeyPair), Failure> {
    let key = KeyPair::generate().map_err(|error| making(&error))?;
    let cert = ca_params(plan.days, &key).self_signed(&key).map_err(|error| making(&error))?;
    write(&plan.dir.join(CA_CERT), &cert.pem(), 0o644)?;
    write(&plan.dir.join(CA_KEY), &key.serialize_pem(), 0o600)?;
    Ok((cert.pem(), key))
}

fn old_ca(dir: &Path) -> Result<(String, KeyPair), Failure> {
    let read = |name: &str| {
        let path = dir.join(name);
        std::fs::read_to_string(&path).map_err(|error| failed(&path)(&error))
    };
    let cert = read(CA_CERT)?;
    let key = KeyPair::from_pem(&read(CA_KEY)?)
        .map_err(|_| Failure::failed(format!("{}: holds no private key", dir.join(CA_KEY).display())))?;
    Ok((cert, key))
}

/// Known by its key, so that this is enough to sign with it again, and no two are taken for one another.
pub(crate) fn ca_params(days: u32, key: &KeyPair) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let id: String = params.key_identifier(key).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    params.distinguished_name.push(DnType::CommonName, format!("farshore private CA {id}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid(&mut params, days.max(CA_DAYS));
    params
}

fn role_params(plan: &Plan, name: &PeerName) -> Result<CertificateParams, Failure> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("farshore {} of {}", name.role.word(), name.group));
    params.use_authority_key_identifier_extension = true;
    // The second is asked for by QEMU, although no key of this kind enciphers another.
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let uri = name.to_string().try_into().map_err(|error: rcgen::Error| making(&error))?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    if name.role != Role::Client {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        let local = ["localhost", "127.0.0.1", "::1"].into_iter().map(str::to_owned);
        let named = plan.hosts.iter().filter(|(role, _)| *role == name.role).map(|(_, host)| host.clone());
        for host in local.chain(named) {
            let alternative = alternative(&host)?;
            if !params.subject_alt_names.contains(&alternative) {
                params.subject_alt_names.push(alternative);
            }
        }
    }
    valid(&mut params, plan.days);
    Ok(params)
}

fn valid(params: &mut CertificateParams, days: u32) {
    let now = SystemTime::now();
    params.not_before = (now - EARLIER).into();
    params.not_after = (now + Duration::from_secs(u64::from(days) * 86_400)).into();
}

fn alternative(host: &str) -> Result<SanType, Failure> {
    if let Ok(address) = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let wrong = || Failure::usage(format!("{host:?} is no name of a host"));
    ServerName::try_from(host).map_err(|_| wrong())?;
    host.to_owned().try_into().map(SanType::DnsName).map_err(|_| wrong())
}

/// `ROLE=NAME`
fn host(word: &str) -> Result<(Role, String), Failure> {
    let wrong = || Failure::usage(format!("--host {word}: write ROLE=NAME, as dr=dr.example"));
    let (role, name) = word.split_once('=').ok_or_else(wrong)?;
    let role = Role::ALL.into_iter().find(|one| one.word() == role && *one != Role::Client).ok_or_else(wrong)?;
    alternative(name)?;
    Ok((role, name.to_owned()))
}

/// Names of the hosts of a configuration, as far as it tells.
fn hosts_of(config: &Config) -> Vec<(Role, String)> {
    let mut found: Vec<(Role, String)> = Vec::new();
    let mut add = |role: Role, address: &Address| {
        let Address::Tcp(text) = address else { return };
        let host = text.rsplit_once(':').map_or(text.as_str(), |(host, _)| host);
        let any = ["0.0.0.0", "[::]", "*"].contains(&host);
        if !any && alternative(host).is_ok() {
            found.push((role, host.to_owned()));
        }
    };
    config.primary.iter().flat_map(|primary| &primary.listen).for_each(|address| add(Role::Primary, address));
    for own in config.aux.iter().filter_map(|aux| aux.own.as_ref()) {
        add(Role::Aux, &own.listen);
    }
    if let Some(crate::cluster::config::TablePlace::Own(address)) = config.aux.as_ref().map(|aux| &aux.table) {
        add(Role::Aux, address);
    }
    if let Some(dr) = &config.dr {
        std::iter::once(&dr.listen).chain(dr.ways()).chain(&dr.export).for_each(|address| add(Role::Dr, address));
    }
    found
}

fn told(plan: &Plan, out: &mut dyn Write) -> std::io::Result<()> {
    let (dir, group) = (plan.dir.display(), &plan.group);
    writeln!(out, "Certificates of the group {group}, valid for {} days, are in {dir}. Copy", plan.days)?;
    for role in [Role::Primary, Role::Aux, Role::Dr] {
        let word = role.word();
        writeln!(
            out,
            "  {dir}/{word}/*.pem   to /etc/farshore/tls/ on the host of {word} (keys for the user farshore only, 0400)"
        )?;
    }
    writeln!(out, "  {dir}/client/*.pem   to those who use the volumes over TCP (--tls-certificates, tls-creds-x509)")?;
    writeln!(out, "and write into the configuration of all hosts:\n")?;
    writeln!(out, "  [tls]\n  ca   = \"/etc/farshore/tls/ca-cert.pem\"")?;
    writeln!(out, "  cert = \"/etc/farshore/tls/cert.pem\"\n  key  = \"/etc/farshore/tls/key.pem\"\n")?;
    match &plan.ca {
        Some(ca) => writeln!(
            out,
            "They are signed by the CA in {}: running roles take them at their next connection.",
            ca.display()
        ),
        None => writeln!(
            out,
            "Keep {dir}/ca-key.pem away from these hosts: who has it can be any of them. Renew in time with\n  \
             farshore certs {group} --ca {dir} --dir NEW"
        ),
    }
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let written = file.and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|error| failed(path)(&error))
}

fn failed(path: &Path) -> impl Fn(&std::io::Error) -> Failure {
    let shown = path.display().to_string();
    move |error| Failure::failed(format!("{shown}: {error}"))
}

fn making(error: &rcgen::Error) -> Failure {
    Failure::failed(format!("a certificate cannot be made: {error}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn plan(name: &str) -> Plan {
        let dir = std::env::temp_dir().join(format!("farshore-certs-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        Plan { group: "orders".into(), dir, days: 30, ca: None, hosts: vec![(Role::Dr, "dr.example".into())] }
    }

    #[test]
    fn each_role_gets_what_it_can_be_known_by_and_keys_are_private() {
        let plan = plan("roles");
        make(&plan).expect("a new directory");
        let mode = |path: PathBuf| std::fs::metadata(path).expect("a file").permissions().mode() & 0o777;
        for role in Role::ALL {
            let dir = plan.dir.join(role.word());
            let (cert, key) = own_files(&dir, role);
            assert_eq!((mode(key.clone()), mode(plan.dir.join(CA_KEY)), mode(dir.clone())), (0o600, 0o600, 0o700));
            let paths = Paths { ca: dir.join(CA_CERT), own: Some((cert, key)) };
            if role != Role::Client {
                tls::check(&paths, Some(&PeerName::new("orders", role)), &BOTH).expect("its own name");
            }
            let other = if role == Role::Dr { Role::Aux } else { Role::Dr };
            let wrong = tls::check(&paths, Some(&PeerName::new("orders", other)), &BOTH).expect_err("another role's");
            assert!(wrong.to_string().contains(&PeerName::new("orders", role).to_string()), "{wrong}");
        }
        let again = make(&plan).expect_err("it is there");
        assert_eq!(again.exit, 3);
        let _ = std::fs::remove_dir_all(&plan.dir);
    }

    #[test]
    fn an_earlier_ca_signs_again_and_a_failure_leaves_nothing() {
        let first = plan("first");
        make(&first).expect("a new directory");
        let second = Plan { ca: Some(first.dir.clone()), ..plan("second") };
        make(&second).expect("signed by the first");
        let (cert, key) = own_files(&second.dir.join("dr"), Role::Dr);
        let paths = Paths { ca: first.dir.join(CA_CERT), own: Some((cert, key)) };
        tls::check(&paths, Some(&PeerName::new("orders", Role::Dr)), &BOTH).expect("hosts with the old CA believe it");
        let lost = Plan { ca: Some(first.dir.join("nowhere")), ..plan("lost") };
        assert!(make(&lost).is_err());
        assert!(!lost.dir.exists());
        for dir in [&first.dir, &second.dir] {
            let _ = std::fs::remove_dir_all(dir);
        }
    }

    #[test]
    fn hosts_are_read_as_role_and_name() {
        assert_eq!(host("dr=dr.example").expect("a host"), (Role::Dr, "dr.example".into()));
        assert_eq!(host("aux=192.0.2.1").expect("an address").0, Role::Aux);
        for wrong in ["dr", "client=x", "dr=a b", "nobody=x"] {
            assert_eq!(host(wrong).expect_err(wrong).exit, 2);
        }
    }
}
