//! What listeners show and ask for: files replaced while they run, certificates by name, OCSP, client certificates.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::harness::{Plan, Site, address, run, text, until};
use crate::origin::nginx;
use crate::peers::{Tls, connect, trust};
use crate::support::Scratch;

/// Runs a program in a directory. Gives what it printed; it must succeed.
fn ran(directory: &Path, program: &str, args: &[&str]) -> String {
    let output = run(Command::new(program).current_dir(directory).args(args), &[]);
    assert!(output.status.success(), "{program} {args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// Certificates by `trunkline certs` for these names.
fn certificates_for(directory: &Path, out: &str, names: &[&str]) {
    let args = [&["certs", "--force", "--out", out, "--name"], names].concat();
    ran(directory, env!("CARGO_BIN_EXE_trunkline"), &args);
}

/// What `openssl s_client` says, whether it succeeds or not.
fn s_client(site: &Site, args: &[&str]) -> (bool, String) {
    let address = site.address.to_string();
    let mut command = Command::new("openssl");
    let output = run(command.args(["s_client", "-connect", &address]).args(args), b"");
    (output.status.success(), text(&output.stdout) + &text(&output.stderr))
}

#[test]
fn files_that_change_are_taken_without_being_told() {
    let origin = nginx(&[]);
    let site = Site::start(origin.address());
    let mut old = Tls::connect(site.address, trust(&site.ca(), &["http/1.1"]));
    certificates_for(site.scratch.path(), "certs", &["localhost"]);
    let fresh = until("new connections see the new one", || {
        Tls::over(connect(site.address), trust(&site.ca(), &["http/1.1"])).ok()
    });
    assert_ne!(fresh.certificate(), old.certificate());
    until("the gateway has seen them, too", || site.gateway.log().contains("certificates reread").then_some(()));
    // What runs goes on, trunks among it.
    old.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").expect("it is open");
    assert!(text(&old.receive_all().0).ends_with("hello from nginx\n"));
    assert_eq!(site.pop.metrics().get("trunks_failed_total"), 0);
    site.pop.until("it is counted", |metrics| metrics.get("certificates_reloaded_total") == 1);
    assert_eq!(site.pop.metrics().get("certificates_refused_total"), 0);
    let expires = site.pop.metrics().get("certificate_expires_timestamp_seconds{key=\"listen[0].certificate\"}");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("it is later").as_secs();
    assert!((364..=365).contains(&((expires - now) / 86_400)), "{expires}");
}

#[test]
fn a_half_written_file_keeps_the_old_one_and_is_told_once() {
    let origin = nginx(&[]);
    let site = Site::start(origin.address());
    let shown = Tls::connect(site.address, trust(&site.ca(), &["http/1.1"])).certificate();
    let config = trust(&site.ca(), &["http/1.1"]);
    certificates_for(site.scratch.path(), "new", &["localhost"]);
    let (chain, key) = (site.scratch.read("new/pop.pem"), site.scratch.read("new/pop.key"));

    site.scratch.write("certs/pop.pem", &chain[..chain.len() / 2]);
    until("the log says so", || site.pop.log().contains("the old certificates stay in use").then_some(()));
    assert!(site.pop.log().contains("certs/pop.pem"), "{}", site.pop.log());
    assert_eq!(Tls::connect(site.address, config.clone()).certificate(), shown);
    // The whole certificate, whose key is still the old one's.
    site.scratch.write("certs/pop.pem", &chain);
    until("the log says so", || site.pop.log().contains("does not fit").then_some(()));
    assert_eq!(Tls::connect(site.address, config).certificate(), shown);
    // That nothing is told again can only be seen by waiting: for three looks at the files.
    thread::sleep(Duration::from_secs(3));
    assert_eq!(site.pop.log().matches("the old certificates stay in use").count(), 2, "{}", site.pop.log());
    // Listener and trunks name the pair, so each change was refused twice.
    assert_eq!(site.pop.metrics().get("certificates_refused_total"), 4);

    site.scratch.write("certs/pop.key", &key);
    let config = trust(&site.scratch.path().join("new/ca.pem"), &["http/1.1"]);
    let fresh = until("the pair is whole", || Tls::over(connect(site.address), config.clone()).ok());
    assert_ne!(fresh.certificate(), shown);
}

#[test]
fn a_certificate_is_chosen_by_the_name_asked_for() {
    let origin = nginx(&[]);
    let own = Scratch::new("names");
    certificates_for(own.path(), "a", &["a.example"]);
    certificates_for(own.path(), "b", &["*.b.example"]);
    certificates_for(own.path(), "c", &["c.other"]);
    let identity = |name: &str, more: &str| {
        let path = own.path().join(name).display().to_string();
        format!("[[listen.identity]]\ncertificate = \"{path}/pop.pem\"\nkey = \"{path}/pop.key\"\n{more}\n")
    };
    let identities = identity("a", "") + &identity("b", "") + &identity("c", "names = [\"given.c.example\"]");
    let plan = Plan { listen: format!("tunnel = \"web\"\n{identities}"), ..Plan::default() };
    let site = Site::with(origin.address(), &plan);
    let shown = |args: &[&str]| {
        let (_, said) = s_client(&site, &[args, &["-showcerts"]].concat());
        let (_, rest) = said.split_once("-----BEGIN CERTIFICATE-----").unwrap_or_else(|| panic!("{said}"));
        rest.split("-----END").next().expect("a split has a first part").trim().replace('\n', "")
    };
    let file = |path: &Path| {
        let pem = fs::read_to_string(path).expect("it exists");
        pem.lines().filter(|line| !line.starts_with("-----")).collect::<String>()
    };
    let of = |name: &str| file(&own.path().join(name).join("pop.pem"));
    let default = file(&site.scratch.path().join("certs/pop.pem"));
    for (name, certificate) in [
        ("a.example", of("a")),
        ("A.Example", of("a")),
        ("x.b.example", of("b")),
        ("x.y.b.example", default.clone()),
        ("b.example", default.clone()),
        ("given.c.example", of("c")),
        ("c.other", default.clone()),
        // `trunkline certs` puts it into every certificate: the first that has it goes before the default.
        ("localhost", of("a")),
        ("nobody.example", default.clone()),
    ] {
        assert_eq!(shown(&["-servername", name]), certificate, "{name}");
    }
    assert_eq!(shown(&["-noservername"]), default);
    // And a client that checks.
    let port = site.address.port();
    let ca = own.path().join("b/ca.pem").display().to_string();
    let url = format!("https://x.b.example:{port}/");
    let resolve = format!("x.b.example:{port}:127.0.0.1");
    let body = ran(own.path(), "curl", &["--silent", "--show-error", "--cacert", &ca, "--resolve", &resolve, &url]);
    assert_eq!(body, "hello from nginx\n");
}

/// An authority whose key is there, with a certificate for `localhost` and what `openssl ocsp` needs.
fn authority(directory: &Path) {
    let openssl = |args: &[&str]| ran(directory, "openssl", args);
    let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let ca = ["req", "-x509", "-days", "30", "-subj", "/CN=ocsp CA", "-keyout", "ca.key", "-out", "ca.pem"];
    openssl(&[&ca[..], &curve].concat());
    let leaf = ["req", "-x509", "-CA", "ca.pem", "-CAkey", "ca.key", "-days", "9", "-set_serial", "0x00fedcba"];
    let rest = ["-subj", "/CN=a", "-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=CA:FALSE"];
    openssl(&[&leaf[..], &rest, &["-keyout", "leaf.key", "-out", "leaf.pem"], &curve].concat());
}

/// A response for its certificate, with a status as in the index of `openssl ca`.
fn respond(directory: &Path, line: &str, out: &str) {
    fs::write(directory.join("index.txt"), format!("{line}\tFEDCBA\tunknown\t/CN=a\n")).expect("our own directory");
    let signer = ["-rsigner", "ca.pem", "-rkey", "ca.key", "-CA", "ca.pem", "-index", "index.txt", "-ndays", "3"];
    ran(
        directory,
        "openssl",
        &[&["ocsp"], &signer[..], &["-issuer", "ca.pem", "-cert", "leaf.pem", "-respout", out]].concat(),
    );
}

#[test]
fn an_ocsp_response_is_stapled_while_it_is_of_use() {
    let origin = nginx(&[]);
    let own = Scratch::new("ocsp");
    authority(own.path());
    respond(own.path(), "V\t400101000000Z\t", "ocsp.der");
    let path = own.path().display().to_string();
    let second = address();
    let listeners = format!(
        "[[listen]]\naddress = \"{second}\"\ntunnel = \"web\"\ncertificate = \"{path}/leaf.pem\"\n\
         key = \"{path}/leaf.key\"\nocsp = \"{path}/ocsp.der\"\n"
    );
    let site = Site::with(origin.address(), &Plan { listeners, ..Plan::default() });
    let status = || {
        let ca = format!("{path}/ca.pem");
        let (address, ca) = (second.to_string(), ca.as_str());
        let mut command = Command::new("openssl");
        let args = ["s_client", "-connect", &address, "-servername", "localhost", "-CAfile", ca, "-status"];
        let output = run(command.args(args).arg("-verify_return_error"), b"");
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let good = status();
    assert!(good.contains("OCSP Response Status: successful") && good.contains("Cert Status: good"), "{good}");
    assert!(!s_client(&site, &["-status"]).1.contains("Cert Status"), "the other listener has none");

    // Half of a file: the old response goes on being sent.
    let whole = own.read("ocsp.der");
    own.write("ocsp.der", &whole[..whole.len() / 2]);
    until("the log says so", || site.pop.log().contains("is not an OCSP response").then_some(()));
    assert!(status().contains("Cert Status: good"));
    // Bad news is not passed on, and told.
    respond(own.path(), "R\t400101000000Z\t240101000000Z", "revoked.der");
    own.write("ocsp.der", own.read("revoked.der"));
    until("the log says so", || site.pop.log().contains("says that the certificate is revoked").then_some(()));
    until("it is left out", || status().contains("OCSP response: no response sent").then_some(()));
    own.write("ocsp.der", whole);
    until("good news is back", || status().contains("Cert Status: good").then_some(()));
}

#[test]
fn clients_show_certificates_where_they_are_asked() {
    let origin = nginx(&[]);
    let other = Scratch::new("foreign");
    certificates_for(other.path(), "certs", &["localhost"]);
    let second = address();
    let plan = Plan {
        listen: "tunnel = \"web\"\nclient_auth = \"required\"\nclient_ca = \"certs/ca.pem\"".to_owned(),
        listeners: format!(
            "[[listen]]\naddress = \"{second}\"\ntunnel = \"web\"\ncertificate = \"certs/pop.pem\"\n\
             key = \"certs/pop.key\"\nclient_auth = \"optional\"\nclient_ca = \"certs/ca.pem\"\n"
        ),
        ..Plan::default()
    };
    let site = Site::with(origin.address(), &plan);
    let path = |scratch: &Scratch, name: &str| scratch.path().join("certs").join(name).display().to_string();
    let own = [path(&site.scratch, "pop.pem"), path(&site.scratch, "pop.key")];
    let foreign = [path(&other, "pop.pem"), path(&other, "pop.key")];
    let answered = |port: u16, pair: Option<&[String; 2]>| {
        let url = format!("https://localhost:{port}/");
        let mut args = vec![url.as_str()];
        if let Some([certificate, key]) = pair {
            args.extend(["--cert", certificate, "--key", key]);
        }
        site.curl_output(&args).stdout == b"hello from nginx\n"
    };
    let (required, optional) = (site.address.port(), second.port());
    assert!(answered(required, Some(&own)) && answered(optional, Some(&own)));
    assert!(!answered(required, None) && answered(optional, None));
    assert!(!answered(required, Some(&foreign)) && !answered(optional, Some(&foreign)));
    site.pop.until("refusals are counted", |metrics| metrics.get("handshakes_failed_total") >= 3);
}
