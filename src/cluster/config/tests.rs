//! What a configuration file may say, and what an operator is told when it says something else.

use super::*;
use proptest::prelude::*;

const EXAMPLE: &str = r#"
[group]
name    = "orders"
protect = "order"          # async | near | order | bunker | sync
ack     = "write"          # write | flush
require = "any"            # both | any | none

[[volume]]
name = "db"
size = "1GiB"

[primary]
dir     = "/var/lib/farshore/primary"      # intent log, FIFO, superblock
backing = { db = "/var/lib/farshore/db.img" }   # file, block device or nbd:// URI
listen  = ["unix:/run/farshore/orders.sock", "127.0.0.1:10809"]
control = "/run/farshore/primary.ctl"
fifo    = { memory = "256MiB", disk = "8GiB" }
metrics = "127.0.0.1:9810"                 # optional, every role: GET /metrics (OpenMetrics), GET / (status page)

[aux]
dir    = "/var/lib/farshore/aux"
listen = "127.0.0.1:10820"                 # or table = "nbd://…" / "/mnt/shared/orders.table" on the other hosts

[dr]
dir     = "/var/lib/farshore/dr"           # journal, spool, superblock
backing = { db = "/var/lib/farshore/db-dr.img" }
listen  = "127.0.0.1:10830"                # replication
export  = ["unix:/run/farshore/orders-dr.sock", "127.0.0.1:10831"]   # NBD, after promotion
control = "/run/farshore/dr.ctl"
streams = 4
"#;

/// The example with one line replaced by another.
fn with(old: &str, new: &str) -> String {
    assert_eq!(EXAMPLE.matches(old).count(), 1, "{old}");
    EXAMPLE.replace(old, new)
}

/// The only complaint about `text`.
fn complaint(text: &str) -> String {
    let errors = parse(text, "f.toml").expect_err("it is wrong");
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors[0].to_string()
}

#[test]
fn the_documented_example_is_read() {
    let config = parse(EXAMPLE, "f.toml").expect("the example of the documentation");
    assert_eq!(config.group.name, "orders");
    assert_eq!(config.group.protect, Protect::Order);
    assert_eq!(config.volumes, [VolumeConfig { name: "db".into(), size: 1 << 30 }]);
    let (primary, aux, dr) = config.need_primary().expect("all sections");
    assert_eq!(primary.backing, [Backing::File("/var/lib/farshore/db.img".into())]);
    assert_eq!(primary.listen.len(), 2);
    assert_eq!(primary.fifo, Fifo { memory: 256 << 20, disk: 8 << 30 });
    assert_eq!(aux.table, TablePlace::Own(Address::Tcp("127.0.0.1:10820".into())));
    assert_eq!((aux.slots, aux.payload), (131_072, 0));
    assert_eq!((dr.streams, dr.journal, dr.spool), (4, 64 << 20, 1 << 30));
    assert_eq!(dr.address, dr.listen);
    assert!(config.need_dr().is_ok() && config.need_aux().is_ok());
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
}

#[test]
fn what_looks_like_a_uri_is_one_or_is_refused() {
    let backing = "backing = { db = \"/var/lib/farshore/db.img\" }";
    for text in ["nbd:localhost:10809", "nbd+unix:/x", "rbd:pool/db"] {
        let said = complaint(&with(backing, &format!("backing = {{ db = \"{text}\" }}")));
        assert!(said.contains("begins as a URI") && said.contains(&format!("./{text}")), "{said}");
    }
    for text in ["./nbd:x", "/dev/disk/by-path/pci-0:1", "a file:1", "1:2"] {
        assert!(parse(&with(backing, &format!("backing = {{ db = \"{text}\" }}")), "f").is_ok(), "{text}");
    }
    let listen = "\"unix:/run/farshore/orders.sock\", \"127.0.0.1:10809\"";
    let config =
        parse(&with(listen, "\"nbd+unix:///?socket=/s\", \"nbd://[::1]:7\", \"nbd://h/\""), "f").expect("URIs");
    let want = ["unix:/s", "[::1]:7", "h:10809"].map(|text| text.parse::<Address>().expect("an address"));
    assert_eq!(config.primary.expect("a section").listen, want);
    for (text, says) in [("nbd://h/db", "names an export"), ("nbds://h", "`tls`"), ("http://h", "nbd://host")] {
        let said = complaint(&with(listen, &format!("\"{text}\"")));
        assert!(said.contains(says), "{said}");
    }
    let said = complaint(&with("listen = \"127.0.0.1:10820\"", "listen = \"nbd://h:1\""));
    assert!(said.contains("host:port"), "{said}");
}

#[test]
fn each_wrong_line_is_named_with_its_remedy() {
    let cases = [
        (r#"protect = "order" "#, r#"protect = "odrer" "#, r#"f.toml:4: group.protect: "odrer" is none of"#),
        (r#"protect = "order" "#, r#"protect = "odrer" "#, r#"did you mean "order"?"#),
        (r#"protect = "order" "#, "protect = 7 ", "must be a string in double quotes"),
        (r#"name    = "orders""#, r#"name = "or/ders""#, "cannot be a name"),
        (r#"name    = "orders""#, r#"name = """#, "f.toml:3: group.name: is empty"),
        (r#"name    = "orders""#, "", "f.toml:2: group.name: is missing: the name of the group"),
        (r#"size = "1GiB""#, r#"size = "1G""#, r#"f.toml:10: volume.size: "1G" is ambiguous; write "1GiB""#),
        (r#"size = "1GiB""#, "size = 1000", "not a whole number of 512-byte sectors"),
        (r#"size = "1GiB""#, "size = 0", r#""0B is too small"#),
        (r#"size = "1GiB""#, "size = true", "is a boolean, but must be a size"),
        (r#"size = "1GiB""#, "", "f.toml:8: volume.size: is missing"),
        ("streams = 4", "streams = 99", "f.toml:30: dr.streams: 99 is not between 1 and 32"),
        ("streams = 4", "streams = -1", "-1 is not between 1 and 32"),
        ("streams = 4", "strems = 4", "f.toml:30: dr.strems: unknown key; did you mean `streams`?"),
        ("streams = 4", "quux = 4", "unknown key; there are `dir`, `backing`"),
        ("streams = 4", r#"spool = "1MiB""#, r#"1MiB is too small: at least "192MiB""#),
        ("streams = 4", r#"journal = "5000001B""#, "not a whole number of MiB"),
        ("streams = 4", r#"journal = "18MiB""#, "at least \"19MiB\""),
        ("backing = { db = \"/var/lib/farshore/db.img\" }", "", "f.toml:12: primary.backing: is missing"),
        ("{ db = \"/var/lib/farshore/db.img\" }", "{}", "says nothing of volume \"db\""),
        ("{ db = \"/var/lib/farshore/db.img\" }", "\"x\"", "is a string, but must be a table: backing = { … }"),
        ("{ db = \"/var/lib/farshore/db.img\" }", r#"{ db = "nbd+ftp://h/x" }"#, "expected nbd://"),
        ("{ db = \"/var/lib/farshore/db.img\" }", r#"{ db = "nbds://h/x" }"#, "which CA is to be believed?"),
        ("{ db = \"/var/lib/farshore/db.img\" }", r#"{ db = "/a", dbb = "/b" }"#, "primary.backing.dbb: unknown key"),
        ("\"unix:/run/farshore/orders.sock\", ", "\"127.0.0.1:10809\", ", "is listed twice"),
        ("\"unix:/run/farshore/orders.sock\", ", "5, ", "must be a list of strings"),
        ("listen = \"127.0.0.1:10820\"", "listen = \"127.0.0.1\"", "f.toml:22: aux.listen: "),
        ("listen = \"127.0.0.1:10820\"", "listen = \"0.0.0.0:1\"", "add `address = \"host:port\"`"),
        ("listen = \"127.0.0.1:10820\"", "", "f.toml:20: aux.listen: is missing"),
        (r#"memory = "256MiB", "#, r#"memory = "4KiB", "#, r#"primary.fifo.memory: 4KiB is too small"#),
        (r#"disk = "8GiB""#, r#"disk = "1MiB""#, "or 0 for no disk FIFO"),
        ("streams = 4", "streams = 4\n[primary.link]", "f.toml:31: primary.link: names no limit"),
        ("streams = 4", "streams = 4\nlink = 5", "dr.link: unknown key"),
        ("streams = 4", "streams = 4\ncompress = \"off\"", "dr.compress: unknown key"),
        ("[[volume]]", "[volume]", "must be written [[volume]]"),
        ("[group]", "[group", "f.toml:2: "),
    ];
    for (old, new, part) in cases {
        let text = with(old, new);
        let errors = parse(&text, "f.toml").expect_err(new);
        let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert!(all.iter().any(|line| line.contains(part.trim_start_matches('"'))), "{new}: {all:?}");
    }
}

#[test]
fn one_mistake_makes_one_complaint() {
    for (old, new) in [
        ("streams = 4", "strems = 4"),
        (r#"size = "1GiB""#, r#"size = "1G""#),
        ("listen = \"127.0.0.1:10820\"", "listen = \"0.0.0.0:1\""),
        ("{ db = \"/var/lib/farshore/db.img\" }", "{}"),
    ] {
        complaint(&with(old, new));
    }
    assert_eq!(parse("", "f").expect_err("nothing in it").len(), 3, "no group, no volume, no role");
}

#[test]
fn all_mistakes_are_told_at_once_in_the_order_of_the_file() {
    let text = with("streams = 4", "strems = 4").replace("\"order\"", "\"ordre\"").replace("1GiB", "1G");
    let lines: Vec<usize> = parse(&text, "f").expect_err("three mistakes").iter().map(|e| e.line).collect();
    assert_eq!(lines, [4, 10, 30]);
}

#[test]
fn a_volume_may_stand_on_an_nbd_server() {
    let file = "{ db = \"/var/lib/farshore/db.img\" }";
    for (uri, warned) in [
        ("nbd+unix:///db?socket=/run/q.sock", false),
        ("nbd://127.0.0.1:10810/db", false),
        ("nbd://nas/db", true),
        ("nbds://nas/db?tls-certificates=/etc/pki/nas", false),
    ] {
        let config = parse(&with(file, &format!("{{ db = \"{uri}\" }}")), "f").expect(uri);
        assert_eq!(config.primary.expect("there").backing, [Backing::Nbd(uri.parse().expect("a URI"))]);
        let told = config.warnings.iter().any(|warning| warning.text.contains("without TLS"));
        assert_eq!(told, warned, "{uri}: {:?}", config.warnings);
    }
}

#[test]
fn two_volumes_on_one_export_are_refused_in_any_spelling() {
    let two = with("size = \"1GiB\"", "size = \"1GiB\"\n[[volume]]\nname = \"log\"\nsize = \"64MiB\"")
        .replace("db-dr.img\" }", "db-dr.img\", log = \"/dev/vg/log\" }");
    for (db, log, refused) in [
        ("nbd://127.0.0.1/e", "nbd://127.0.0.1:10809/e", true),
        ("nbd+unix:///?socket=/run/q", "nbd+unix:///?socket=/run//q", true),
        ("nbd+unix:///?socket=/run/q", "nbd+unix:///log?socket=/run/q", false),
    ] {
        let text = two.replace("\"/var/lib/farshore/db.img\" }", &format!("\"{db}\", log = \"{log}\" }}"));
        let told = parse(&text, "f").err().is_some_and(|errors| {
            errors.iter().any(|error| error.text.contains("backs another volume of the group already"))
        });
        assert_eq!(told, refused, "{db} {log}");
    }
}

#[test]
fn several_volumes_keep_their_order_and_need_their_backing() {
    let text = with("size = \"1GiB\"", "size = \"1GiB\"\n[[volume]]\nname = \"log\"\nsize = \"64MiB\"")
        .replace("db.img\" }", "db.img\", log = \"/dev/vg/log\" }")
        .replace("db-dr.img\" }", "db-dr.img\", log = \"/dev/vg/log-dr\" }");
    let config = parse(&text, "f").expect("two volumes");
    let names: Vec<&str> = config.volumes.iter().map(|v| v.name.as_str()).collect();
    assert_eq!(names, ["db", "log"]);
    assert_eq!(config.dr.expect("dr").backing[1], Backing::File("/dev/vg/log-dr".into()));
    assert!(complaint(&text.replace(", log = \"/dev/vg/log\" }   #", " }   #")).contains("\"log\""));
    let twice = text.replace("name = \"log\"", "name = \"db\"");
    let errors = parse(&twice, "f").expect_err("a name twice");
    assert!(errors.iter().any(|e| e.text.contains("earlier volume")), "{errors:?}");
}

#[test]
fn one_address_for_two_roles_is_warned_of_whoever_serves_there() {
    let shared = [
        ("dr.export", with("127.0.0.1:10831", "127.0.0.1:10809")),
        ("dr.export", with("orders-dr.sock", "orders.sock")),
        ("dr.metrics", with("streams = 4", "metrics = \"127.0.0.1:9810\"")),
        ("dr.listen", with("listen  = \"127.0.0.1:10830\"", "listen = \"127.0.0.1:10809\"")),
    ];
    for (key, text) in shared {
        let warnings = parse(&text, "f").expect("they may be on two hosts, behind a tunnel").warnings;
        let told = warnings.iter().any(|it| it.key == key && it.text.contains("if both roles run on one host"));
        assert!(told, "{key}: {warnings:?}");
        let apart = text.replace("[dr]\n", "[dr]\naddress = \"192.0.2.1:1\"\n");
        let warnings = parse(&format!("tls = \"off\"\n{apart}"), "f").expect("two hosts").warnings;
        assert!(warnings.iter().all(|it| it.key != key), "{key}: {warnings:?}");
    }
}

#[test]
fn hosts_of_their_own_may_have_the_same_names_and_of_one_host_it_is_warned() {
    let text = with("dir     = \"/var/lib/farshore/dr\"", "dir     = \"/var/lib/farshore/primary\"")
        .replace("/run/farshore/dr.ctl", "/run/farshore/primary.ctl")
        .replace("db-dr.img", "db.img");
    let warned = |text: &str| parse(text, "f").expect("a tunnel may be between them").warnings;
    let warnings = warned(&text);
    let keys: Vec<&str> = warnings.iter().map(|warning| warning.key.as_str()).collect();
    assert_eq!(keys, ["dr.dir", "dr.control", "dr.backing.db"], "{warnings:?}");
    assert!(warnings.iter().all(|warning| warning.text.contains("if both roles run on one host")), "{warnings:?}");
    let apart = format!("tls = \"off\"\n{}", text.replace("127.0.0.1:10830", "192.0.2.1:10830"));
    assert!(warned(&apart).iter().all(|warning| !keys.contains(&warning.key.as_str())), "each on a host of its own");
}

#[test]
fn the_table_may_stand_elsewhere() {
    let own = "dir    = \"/var/lib/farshore/aux\"\nlisten = \"127.0.0.1:10820\"";
    for (table, place) in [
        ("/mnt/shared/orders.table", TablePlace::File("/mnt/shared/orders.table".into())),
        ("nbd://nas:10809/orders", TablePlace::Nbd("nbd://nas:10809/orders".parse().expect("a URI"))),
    ] {
        let config = parse(&with(own, &format!("table = \"{table}\"")), "f").expect("a table elsewhere");
        assert_eq!(config.aux.as_ref().expect("aux").table, place);
        let error = config.need_aux().expect_err("nothing to run").to_string();
        assert!(error.contains("stands elsewhere"), "{error}");
    }
    assert!(complaint(&with(own, "table = \"nbd+ftp://x\"")).contains("aux.table"));
}

#[test]
fn another_address_than_the_one_listened_at() {
    let text = with("listen  = \"127.0.0.1:10830\"", "listen = \"0.0.0.0:10830\"\naddress = \"dr.example:10830\"");
    let text = format!("tls = \"off\"\n{text}");
    let dr = parse(&text, "f").expect("an address").dr.expect("dr");
    assert_eq!((dr.listen.to_string(), dr.address.to_string()), ("0.0.0.0:10830".into(), "dr.example:10830".into()));
}

#[test]
fn bunker_keeps_payloads_at_the_auxiliary() {
    let text = with("protect = \"order\" ", "protect = \"bunker\" ");
    assert_eq!(parse(&text, "f").expect("bunker").aux.expect("aux").payload, 1 << 30);
    let none = text.replace("listen = \"127.0.0.1:10820\"", "listen = \"127.0.0.1:10820\"\npayload = 0");
    assert!(complaint(&none).contains("0 leaves no room for payloads"));
}

#[test]
fn a_host_needs_only_its_own_sections() {
    let config =
        parse("tls='off'\n[group]\nname='g'\n[[volume]]\nname='v'\nsize='1MiB'\n[aux]\ndir='a'\nlisten='h:1'", "f");
    let config = config.expect("the auxiliary's file");
    assert!(config.need_aux().is_ok());
    let error = config.need_primary().expect_err("no primary").to_string();
    assert!(error.starts_with("f: primary: there is no [primary] section"), "{error}");
    assert_eq!(config.aux.expect("aux").own.expect("own").control, PathBuf::from("a/control"));
}

const CERTIFICATES: &str = "\n[tls]\nca = \"/t/ca.pem\"\ncert = \"/t/{role}.pem\"\nkey = \"/t/key.pem\"\n";

#[test]
fn other_ways_to_dr_are_listed_once_and_lead_to_another_host_or_none() {
    let of = |text: &str| with("streams = 4", &format!("streams = 4\n{text}"));
    let dr = parse(&of("paths = [\"127.0.0.2:7\", \"127.0.0.3:7\"]"), "f.toml").expect("it is right").dr.expect("a DR");
    assert_eq!(dr.ways().count(), 3);
    assert_eq!(parse(EXAMPLE, "f.toml").expect("it is right").dr.expect("a DR").paths, []);
    for (text, wanted) in [
        ("paths = []", "dr.paths: is empty"),
        ("paths = [\"127.0.0.2:7\", \"127.0.0.2:7\"]", "is listed twice"),
        ("paths = [\"127.0.0.1:10830\"]", "is the address already"),
        ("paths = [\"unix:/run/dr.sock\"]", "a way to another host is host:port"),
        ("paths = [\"dr.example:1\"]", "dr.paths: dr.example:1 is a link to another host"),
        ("paths = 7", "dr.paths"),
    ] {
        let said = complaint(&of(text));
        assert!(said.contains(wanted), "{text}: {said}");
    }
}

#[test]
fn what_crosses_is_compressed_as_it_is_said() {
    let of = |text: &str| parse(&with("metrics = \"127.0.0.1:9810\"", text), "f.toml");
    let read = |text: &str| of(text).expect("it is right").primary.expect("a primary").compress;
    assert_eq!(read(""), Compress::Auto);
    for (word, wanted) in [("auto", Compress::Auto), ("always", Compress::Always), ("off", Compress::Off)] {
        assert_eq!(read(&format!("compress = \"{word}\"")), wanted);
    }
    let said = complaint(&with("metrics = \"127.0.0.1:9810\"", "compress = \"zip\""));
    assert!(said.contains("primary.compress: \"zip\"") && said.contains("always"), "{said}");
}

#[test]
fn a_link_that_leaves_its_host_needs_certificates_or_a_word() {
    for (old, new, place) in [
        ("listen  = \"127.0.0.1:10830\"", "listen = \"192.0.2.1:10830\"", "f.toml:27: dr.listen: 192.0.2.1:10830"),
        ("streams = 4", "address = \"dr.example:1\"", "f.toml:30: dr.address: dr.example:1"),
        ("listen = \"127.0.0.1:10820\"", "listen = \"[::]:1\"\naddress = \"b:1\"", "f.toml:23: aux.address: b:1"),
    ] {
        let text = with(old, new);
        let told = complaint(&text);
        assert!(told.starts_with(place) && told.contains("[tls]") && told.contains("tls = \"off\""), "{told}");
        assert_eq!(parse(&format!("tls = \"off\"\n{text}"), "f").expect("careless").tls, Tls::Off);
        let config = parse(&format!("{text}{CERTIFICATES}"), "f").expect("secure");
        let own = config.certificates(Role::Aux).and_then(|paths| paths.own).expect("certificates");
        assert_eq!(own, ("/t/aux.pem".into(), "/t/key.pem".into()));
        assert_eq!(config.name(Role::Dr).to_string(), "farshore://orders/dr");
    }
    assert_eq!(parse(EXAMPLE, "f").expect("on one host").tls, Tls::Absent);
    assert!(complaint(&format!("tls = \"of\"\n{EXAMPLE}")).contains("write \"off\", or a section [tls]"));
    assert!(
        complaint(&format!("{EXAMPLE}{}", CERTIFICATES.replace("key =", "# key ="))).contains("tls.key: is missing")
    );
}

#[test]
fn nbd_clients_need_tls_as_soon_as_there_are_certificates_unless_told_otherwise() {
    use crate::core::modes::TlsMode;
    let mode = |text: &str| {
        let config = parse(text, "f").expect(text);
        let (primary, dr) = (config.primary.expect("primary"), config.dr.expect("dr"));
        (primary.tls, primary.client_certificates, dr.tls, dr.client_certificates)
    };
    let secure = format!("{EXAMPLE}{CERTIFICATES}");
    assert_eq!(mode(EXAMPLE), (TlsMode::Off, false, TlsMode::Off, false));
    assert_eq!(mode(&secure), (TlsMode::Required, false, TlsMode::Required, false));
    let mixed = secure
        .replace("streams = 4", "tls = \"required\"\nclient_certificates = \"yes\"")
        .replace("metrics = \"127", "tls = \"off\" # \"127");
    assert_eq!(mode(&mixed), (TlsMode::Off, false, TlsMode::Required, true));
    for (old, section) in [("streams = 4", "dr"), ("metrics = \"127.0.0.1:9810\"", "primary")] {
        let lets_in = secure.replace(old, "tls = \"optional\"\nclient_certificates = \"yes\" #");
        let told = complaint(&lets_in);
        assert!(told.contains(&format!("{section}.client_certificates: ")), "{told}");
        assert!(told.contains("write tls = \"required\""), "{told}");
    }
    assert!(complaint(&with("streams = 4", "tls = \"required\"")).contains("dr.tls: needs certificates"));
    assert!(complaint(&with("streams = 4", "client_certificates = \"yes\"")).contains("within TLS only"));
    assert_eq!(TlsMode::Required.on_unix(), TlsMode::Optional);
}

#[test]
fn who_may_write_from_outside_and_shows_nothing_is_warned_of() {
    let known = "client_certificates = \"yes\"";
    let (listen, export) = ("127.0.0.1:10809\"]", "127.0.0.1:10831\"]");
    for (address, tls, more, remedy) in [
        ("0.0.0.0:1", "", "", Some("tls = \"required\" and client_certificates")),
        ("[::]:1", CERTIFICATES, "", Some("write client_certificates = \"yes\" in")),
        ("192.0.2.1:1", CERTIFICATES, "tls = \"optional\"", Some("tls = \"required\" and client_certificates")),
        ("h:1", CERTIFICATES, "tls = \"off\"", Some("tls = \"required\" and client_certificates")),
        ("h:1", CERTIFICATES, known, None),
        ("[::ffff:127.0.0.1]:1", "", "", None),
        ("localhost:1", "", "", None),
    ] {
        for (old, section, key, line) in [(listen, "primary", "listen", 15), (export, "dr", "export", 28)] {
            let own = format!("{address}\"]");
            let text = EXAMPLE.replace("metrics = \"127", &format!("{more} # \"127")).replace("streams = 4", more);
            let text = format!("{}{tls}", text.replace(old, &own));
            let warnings = parse(&text, "f.toml").expect(address).warnings;
            let told: Vec<String> = warnings.iter().map(ToString::to_string).collect();
            match remedy {
                None => assert!(told.is_empty(), "{told:?}"),
                Some(remedy) => {
                    let place = format!("f.toml:{line}: {section}.{key}: {address}: whoever reaches that");
                    assert!(told.len() == 1 && told[0].starts_with(&place), "{told:?}");
                    assert!(told[0].contains(remedy) && told[0].contains(&format!("in [{section}]")), "{told:?}");
                }
            }
        }
    }
    let bare = format!("tls = \"off\"\n{}", EXAMPLE.replace(listen, "0.0.0.0:1\"]"));
    assert_eq!(parse(&bare, "f").expect("who says so may").warnings.len(), 1);
    let figures = parse(&with("metrics = \"127.0.0.1:9810\"", "metrics = \"0.0.0.0:9810\""), "f").expect("read only");
    assert!(figures.warnings.len() == 1 && figures.warnings[0].key == "primary.metrics", "{:?}", figures.warnings);
}

#[test]
fn a_certificate_is_needed_for_the_ends_at_which_its_role_shows_it() {
    let secure = format!("{EXAMPLE}{CERTIFICATES}");
    let plain = secure.replace("metrics = \"127", "tls = \"off\" # \"127").replace("streams = 4", "tls = \"off\"");
    let own = "dir    = \"/var/lib/farshore/aux\"\nlisten = \"127.0.0.1:10820\"";
    let elsewhere = plain.replace(own, "table = \"/mnt/shared/orders.table\"");
    let (client, server, both) = (vec![End::Client], vec![End::Server], vec![End::Client, End::Server]);
    for (text, primary, dr) in [(&secure, &both, &both), (&plain, &client, &both), (&elsewhere, &client, &server)] {
        let config = parse(text, "f").expect("secure");
        let ends = [Role::Primary, Role::Aux, Role::Dr].map(|role| config.ends(role));
        assert_eq!(ends, [primary.clone(), server.clone(), dr.clone()]);
    }
}

const SHARED: &str = "\n[tls]\npsk = \"/t/{role}.psk\"\n";

#[cfg(feature = "psk")]
#[test]
fn nbd_clients_share_keys_and_links_keep_their_certificates() {
    use crate::core::modes::TlsMode;
    let both = format!("{EXAMPLE}{CERTIFICATES}psk = \"/t/{{role}}.psk\"\n");
    for (text, certified) in [(format!("{EXAMPLE}{SHARED}"), false), (both.clone(), true)] {
        let config = parse(&text, "f").expect("shared keys");
        assert_eq!(config.shared_keys(Role::Primary), Some("/t/primary.psk".into()));
        assert_eq!(config.shared_keys(Role::Dr), Some("/t/dr.psk".into()));
        assert_eq!(config.shared_keys(Role::Aux), None);
        assert_eq!(config.certificates(Role::Dr).is_some(), certified);
        assert_eq!(config.primary.expect("primary").tls, TlsMode::Required);
    }
    let off = both.replace("streams = 4", "tls = \"off\"");
    assert_eq!(parse(&off, "f").expect("plain at DR").shared_keys(Role::Dr), None);
    let text = both.replace("streams = 4", "client_certificates = \"yes\"");
    let told = complaint(&text);
    assert!(told.contains("dr.client_certificates: are not asked for") && told.contains("shared key"), "{told}");
    // Keys of clients say nothing of links.
    let text = with("streams = 4", "address = \"dr.example:1\"");
    assert!(complaint(&format!("{text}{SHARED}")).contains("dr.address: dr.example:1 is a link to another host"));
    assert!(complaint(&both.replace("ca =", "# ca =")).contains("tls.ca: is missing"));
    assert!(complaint(&format!("{EXAMPLE}\n[tls]\npsk = \"\"\n")).contains("tls.psk: is empty"));
}

#[cfg(not(feature = "psk"))]
#[test]
fn a_build_without_shared_keys_refuses_them_and_says_how_to_build_it() {
    let told = complaint(&format!("{EXAMPLE}{SHARED}"));
    assert!(told.contains("tls.psk: this farshore was built without") && told.contains("--features psk"), "{told}");
}

#[test]
fn what_may_go_to_dr_is_limited_by_the_hour() {
    let link = |text: &str| with("metrics = \"127.0.0.1:9810\"", &format!("link = {text}"));
    let read = |text: &str| parse(&link(text), "f.toml").map(|it| it.primary.expect("a primary").link);
    let limit = read("{ bytes_per_second = \"50MiB\" }").expect("a limit");
    assert_eq!((limit.limit, limit.hours.len()), (Some(50 << 20), 0));
    let limit = read(
        "{ hours = [{ from = \"22:00\", to = \"06:00\" }, { from = \"08:00\", to = \"18:00\", days = [\"mon\", \"sun\"], \
         bytes_per_second = \"5MiB\" }] }",
    )
    .expect("hours");
    assert_eq!((limit.limit, limit.hours[0].limit, limit.hours[0].days), (None, None, [true; 7]));
    let office = &limit.hours[1];
    assert_eq!((office.from, office.to, office.limit), (480, 1080, Some(5 << 20)));
    assert_eq!(office.days, [true, false, false, false, false, false, true]);
    assert_eq!(parse(EXAMPLE, "f.toml").expect("no limit").primary.expect("a primary").link, RateLimit::default());
    for (text, part) in [
        ("{}", "primary.link: names no limit"),
        ("7", "must be a table: link = { … }"),
        ("{ bytes_per_second = \"1KiB\" }", "1KiB is too small"),
        ("{ bytes_per_second = \"100KiB\" }", "too few for 4 streams: at least \"256KiB\", or fewer [dr] streams"),
        ("{ bytes_per_second = \"1MiB\", rate = 1 }", "primary.link.rate: unknown key"),
        ("{ hours = [{ to = \"06:00\" }] }", "from: is missing: a time of day"),
        ("{ hours = [{ from = \"24:00\", to = \"06:00\" }] }", "\"24:00\" is no time of day"),
        ("{ hours = [{ from = \"9:00\", to = \"06:00\" }] }", "\"9:00\" is no time of day"),
        ("{ hours = [{ from = \"09:00\", to = \"06:00\", days = [\"monday\"] }] }", "\"monday\" is no day"),
        ("{ hours = [{ from = \"09:00\", to = \"06:00\", bytes_per_second = 0 }] }", "too small"),
    ] {
        let said = complaint(&link(text));
        assert!(said.contains(part), "{text}: {said}");
        assert!(said.starts_with("f.toml:18: "), "{text}: {said}");
    }
    let unix = link("{ bytes_per_second = \"50MiB\" }").replace("\"127.0.0.1:10830\"", "\"unix:/run/dr.sock\"");
    assert!(complaint(&unix).contains("only what goes over TCP can be limited"), "{}", complaint(&unix));
}

#[test]
fn keys_are_found_by_line() {
    for (keys, line) in [(vec!["dr", "backing", "db"], 26), (vec!["dr", "spool"], 24), (vec!["nothing"], 0)] {
        assert_eq!(line_of(EXAMPLE, &keys), line, "{keys:?}");
    }
}

proptest! {
    #[test]
    fn no_text_panics(text in ".*") {
        let _ = parse(&text, "f");
    }

    #[test]
    fn no_damage_to_the_example_panics(at in 0usize..EXAMPLE.len(), cut in 0usize..40, put in "[\\[\\]{}=\"'a-z0-9\n.]{0,6}") {
        let mut bytes = EXAMPLE.as_bytes().to_vec();
        let end = (at + cut).min(bytes.len());
        bytes.splice(at..end, put.bytes());
        let _ = parse(&String::from_utf8_lossy(&bytes), "f");
    }
}
