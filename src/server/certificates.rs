//! Certificates and keys: from PEM files to the DER bytes that `tls` takes, and a development authority.
//!
//! Owns the reading and checking of these files. Knows nothing of rustls and opens no socket. Invariant: an
//! [`Identity`] holds a certificate and the key that fits it; the key's bytes never reach a log or a debug print.

use std::fmt;
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData as _, SanType,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::problems::{Place, Problems};
use super::section::Located;
use super::staple::{Staple, Unusable};

/// Largest file of certificates or keys that is read, in bytes: every public authority of an operating system in one
/// file is about 250 KB.
const PEM_FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Largest OCSP response that is read, in bytes: it must fit a certificate message with the chain.
const OCSP_FILE_BYTES_MAX: u64 = 16 * 1024;

/// A certificate with its chain, and the key that fits it.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// The file of the chain.
    pub certificate_file: PathBuf,
    /// The file of the key.
    pub key_file: PathBuf,
    /// The chain in DER, leaf first.
    pub chain: Vec<Vec<u8>>,
    /// The key in DER: PKCS#8, SEC1 or PKCS#1.
    pub key: Vec<u8>,
    /// When the first certificate of the chain to do so expires.
    pub expires: SystemTime,
    /// The file of the OCSP response.
    pub ocsp_file: Option<PathBuf>,
    /// The OCSP response, if it is of use now.
    pub staple: Option<Staple>,
}

/// Where the files of an identity are, and where they were named.
pub(super) struct IdentityFiles {
    pub(super) certificate: Located<PathBuf>,
    pub(super) key: Located<PathBuf>,
    pub(super) ocsp: Option<Located<PathBuf>>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Identity")
            .field("certificate_file", &self.certificate_file)
            .field("key_file", &self.key_file)
            .field("chain_certificates", &self.chain.len())
            .finish_non_exhaustive()
    }
}

/// Certificates of authorities that are trusted.
#[derive(Clone, PartialEq, Eq)]
pub struct Authorities {
    /// The file they came from.
    pub file: PathBuf,
    /// The certificates in DER.
    pub roots: Vec<Vec<u8>>,
}

impl fmt::Debug for Authorities {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Authorities").field("file", &self.file).field("roots", &self.roots.len()).finish()
    }
}

impl Identity {
    /// Reads a chain, its key and, if there is one, its OCSP response. Notes every mistake; None when there is one.
    #[must_use]
    pub(super) fn load(problems: &mut Problems, files: &IdentityFiles, now: SystemTime) -> Option<Identity> {
        let mut identity = Identity::load_pair(problems, files, now)?;
        match &files.ocsp {
            Some(ocsp) => identity.load_staple(problems, ocsp, now).then_some(identity),
            None => Some(identity),
        }
    }

    /// Reads a chain and its key. Notes every mistake; None when there is one.
    #[must_use]
    pub(super) fn load_pair(problems: &mut Problems, files: &IdentityFiles, now: SystemTime) -> Option<Identity> {
        let (certificate, key) = (&files.certificate, &files.key);
        let chain = load_certificates(problems, certificate, now);
        let key_der = load_key(problems, key);
        let (chain, key_der) = (chain?, key_der?);
        check_key_fits(problems, &chain, certificate, &key_der, key)?;
        Some(Identity {
            certificate_file: certificate.value.clone(),
            key_file: key.value.clone(),
            expires: chain.iter().filter_map(|der| expiry(der)).min().unwrap_or(now),
            chain,
            key: key_der.secret_der().to_vec(),
            ocsp_file: files.ocsp.as_ref().map(|file| file.value.clone()),
            staple: None,
        })
    }

    /// Reads the OCSP response. One that is of no use is warned of and not sent. False when the file is broken: then an
    /// earlier response stays as long as it is of use.
    #[must_use]
    pub(super) fn load_staple(&mut self, problems: &mut Problems, file: &Located<PathBuf>, now: SystemTime) -> bool {
        let path = file.value.display();
        let leaf = &self.chain[0];
        let remedy =
            "give the response of the certificate's OCSP responder in DER, as `openssl ocsp -respout` writes it";
        let read = read_bounded(&file.value, OCSP_FILE_BYTES_MAX);
        let what = match read.map(|der| Staple::new(der, leaf, now)) {
            Ok(Ok(staple)) => {
                self.staple = Some(staple);
                return true;
            }
            Ok(Err(Unusable::Useless(why))) => {
                let what = format!("{path} {why}: the certificate is shown without it");
                problems.warning(&file.place, what, "fetch a new response and put it in place");
                self.staple = None;
                return true;
            }
            Ok(Err(Unusable::Broken)) => format!("{path} is not an OCSP response"),
            Err(error) => format!("cannot read {path}: {error}"),
        };
        problems.error(&file.place, what, remedy);
        self.staple = self.staple.take().filter(|staple| staple.is_usable(leaf, now));
        false
    }

    /// The same with the response another one has.
    pub(super) fn with_staple_of(self, other: &Identity) -> Identity {
        Identity { staple: other.staple.clone(), ..self }
    }

    /// Where its files are named in the configuration: `table.certificate` and so on.
    pub(super) fn located_files(&self, table: &str) -> IdentityFiles {
        IdentityFiles {
            certificate: located(&self.certificate_file, format!("{table}.certificate")),
            key: located(&self.key_file, format!("{table}.key")),
            ocsp: self.ocsp_file.as_ref().map(|file| located(file, format!("{table}.ocsp"))),
        }
    }

    /// When its OCSP response is to be left out.
    pub(super) fn staple_until(&self) -> Option<SystemTime> {
        self.staple.as_ref().and_then(|staple| staple.next_update)
    }

    /// The files it is read from.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        [Some(&self.certificate_file), Some(&self.key_file), self.ocsp_file.as_ref()]
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }

    /// The DNS names of the certificate (RFC 5280 section 4.2.1.6), in lower case.
    #[must_use]
    pub fn dns_names(&self) -> Vec<String> {
        let Ok((_, leaf)) = X509Certificate::from_der(&self.chain[0]) else { return Vec::new() };
        let Ok(Some(names)) = leaf.subject_alternative_name() else { return Vec::new() };
        let dns = names.value.general_names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) if is_certificate_name(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        });
        dns.collect()
    }
}

/// When a certificate expires.
fn expiry(der: &[u8]) -> Option<SystemTime> {
    validity(der).map(|(_, not_after)| not_after)
}

/// From when until when a certificate in DER is valid; None when it is none.
#[must_use]
pub fn validity(der: &[u8]) -> Option<(SystemTime, SystemTime)> {
    let (_, parsed) = X509Certificate::from_der(der).ok()?;
    let validity = parsed.validity();
    Some((validity.not_before.to_datetime().into(), validity.not_after.to_datetime().into()))
}

impl Authorities {
    /// Reads the certificates of authorities. Notes every mistake; None when there is one.
    #[must_use]
    pub(super) fn load(problems: &mut Problems, file: &Located<PathBuf>, now: SystemTime) -> Option<Authorities> {
        let roots = load_certificates(problems, file, now)?;
        if roots.iter().all(|der| X509Certificate::from_der(der).is_ok_and(|(_, parsed)| !parsed.is_ca())) {
            problems.warning(
                &file.place,
                format!("{} holds no certificate of an authority", file.value.display()),
                "give the CA's certificate, not one it issued",
            );
        }
        Some(Authorities { file: file.value.clone(), roots })
    }
}

fn load_certificates(problems: &mut Problems, file: &Located<PathBuf>, now: SystemTime) -> Option<Vec<Vec<u8>>> {
    let pem = read_pem(problems, file, "certificate")?;
    let path = file.value.display();
    let parsed: Result<Vec<CertificateDer<'static>>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let chain: Vec<Vec<u8>> = match parsed {
        Ok(chain) => chain.into_iter().map(|der| der.to_vec()).collect(),
        Err(error) => {
            problems.error(&file.place, format!("{path} is not readable PEM: {error}"), PEM_REMEDY);
            return None;
        }
    };
    if chain.is_empty() {
        let what = if PrivateKeyDer::from_pem_slice(&pem).is_ok() {
            format!("{path} holds a key and no certificate")
        } else {
            format!("{path} holds no certificate")
        };
        problems.error(&file.place, what, PEM_REMEDY);
        return None;
    }
    for (index, der) in chain.iter().enumerate() {
        match X509Certificate::from_der(der) {
            Ok((_, parsed)) => check_validity(problems, file, index, &parsed, now),
            Err(_) => {
                let what = format!("certificate {} of {path} is not an X.509 certificate", index + 1);
                problems.error(&file.place, what, PEM_REMEDY);
                return None;
            }
        }
    }
    Some(chain)
}

const PEM_REMEDY: &str = "give a PEM file with BEGIN CERTIFICATE lines, leaf first; \
                          `trunkline certs` makes one for development";

fn load_key(problems: &mut Problems, file: &Located<PathBuf>) -> Option<PrivateKeyDer<'static>> {
    let pem = read_pem(problems, file, "key")?;
    warn_if_others_can_read(problems, file);
    let path = file.value.display();
    let remedy = "give a PEM file with an unencrypted key (BEGIN PRIVATE KEY)";
    match PrivateKeyDer::from_pem_slice(&pem) {
        Ok(key) => Some(key),
        Err(rustls_pki_types::pem::Error::NoItemsFound) => {
            let text = String::from_utf8_lossy(&pem);
            let (what, remedy) = if text.contains("BEGIN ENCRYPTED PRIVATE KEY") {
                (format!("{path} holds an encrypted key"), "decrypt it: openssl pkcs8 -in KEY -out KEY.plain")
            } else if text.contains("BEGIN CERTIFICATE") {
                (format!("{path} holds a certificate and no key"), remedy)
            } else {
                (format!("{path} holds no key"), remedy)
            };
            problems.error(&file.place, what, remedy);
            None
        }
        Err(error) => {
            problems.error(&file.place, format!("{path} is not readable PEM: {error}"), remedy);
            None
        }
    }
}

fn check_key_fits(
    problems: &mut Problems,
    chain: &[Vec<u8>],
    certificate: &Located<PathBuf>,
    key_der: &PrivateKeyDer<'_>,
    key: &Located<PathBuf>,
) -> Option<()> {
    let Ok(pair) = KeyPair::try_from(key_der) else {
        let what = format!("{} holds a key of a kind that is not supported", key.value.display());
        problems.error(&key.place, what, "use ECDSA P-256 (best), P-384, P-521, Ed25519, or RSA of 2048 bits or more");
        return None;
    };
    let fits = |der: &Vec<u8>| {
        X509Certificate::from_der(der)
            .is_ok_and(|(_, cert)| *cert.public_key().subject_public_key.data == *pair.der_bytes())
    };
    if chain.first().is_some_and(fits) {
        return Some(());
    }
    let (what, remedy) = if chain.iter().any(fits) {
        let file = certificate.value.display();
        (format!("fits a certificate of {file} that is not the first"), "put the leaf certificate first in the chain")
    } else {
        let (key, file) = (key.value.display(), certificate.value.display());
        (format!("the key {key} does not fit the certificate {file}"), "give the key the certificate was issued for")
    };
    problems.error(&key.place, what, remedy);
    None
}

fn check_validity(
    problems: &mut Problems,
    file: &Located<PathBuf>,
    index: usize,
    certificate: &X509Certificate<'_>,
    now: SystemTime,
) {
    let now = time::OffsetDateTime::from(now);
    let validity = certificate.validity();
    let (from, until) = (validity.not_before.to_datetime(), validity.not_after.to_datetime());
    let name = format!("certificate {} of {}", index + 1, file.value.display());
    if until < now {
        let what = format!("{name} has expired on {}", until.date());
        problems.out_of_time(&file.place, what, "renew it: peers will refuse it");
    } else if from > now {
        let what = format!("{name} is not valid before {}", from.date());
        problems.out_of_time(&file.place, what, "check the clock of this machine, or issue it again");
    }
}

fn read_pem(problems: &mut Problems, file: &Located<PathBuf>, noun: &str) -> Option<Vec<u8>> {
    match read_bounded(&file.value, PEM_FILE_BYTES_MAX) {
        Ok(bytes) => Some(bytes),
        Err(error) => {
            let (what, remedy) = match error.kind() {
                std::io::ErrorKind::NotFound => (
                    format!("no such file: {}", file.value.display()),
                    format!(
                        "correct the path (it is relative to the configuration file), or make a {noun} for \
                         development with `trunkline certs`"
                    ),
                ),
                std::io::ErrorKind::PermissionDenied => (
                    format!("may not read {}", file.value.display()),
                    "let the user this process runs as read it".to_owned(),
                ),
                _ => (format!("cannot read {}: {error}", file.value.display()), format!("give the file of the {noun}")),
            };
            problems.error(&file.place, what, remedy);
            None
        }
    }
}

/// The bytes of a file of at most `bytes_max`.
///
/// # Errors
/// Those of the file system; `FileTooLarge` when there are more bytes.
pub(super) fn read_bounded(path: &Path, bytes_max: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(std::io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

pub(super) fn warn_if_others_can_read(problems: &mut Problems, file: &Located<PathBuf>) {
    use std::os::unix::fs::PermissionsExt as _;
    let Ok(metadata) = std::fs::metadata(&file.value) else { return };
    if metadata.permissions().mode() & 0o007 != 0 {
        let path = file.value.display();
        problems.warning(&file.place, format!("every user can read the key {path}"), format!("chmod 600 {path}"));
    }
}

/// How long certificates of the development authority are valid.
pub const DEVELOPMENT_VALIDITY: Duration = Duration::from_secs(365 * 24 * 3600);

/// How far back their validity begins: clocks of two machines differ.
const DEVELOPMENT_BACKDATE: Duration = Duration::from_secs(3600);

/// What a certificate is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Usage {
    /// A TLS server: the gateway.
    Server,
    /// A TLS server that is also a client: the POP, which dials trunks.
    ServerAndClient,
}

/// What the development authority could not do.
#[derive(Debug)]
pub struct IssueError(rcgen::Error);

impl fmt::Display for IssueError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "cannot make a certificate: {}", self.0)
    }
}

impl std::error::Error for IssueError {}

impl From<rcgen::Error> for IssueError {
    fn from(error: rcgen::Error) -> IssueError {
        IssueError(error)
    }
}

/// An authority for development and tests: ECDSA P-256, valid for a year, its key in memory only.
pub struct DevelopmentCa {
    issuer: Issuer<'static, KeyPair>,
    certificate: rcgen::Certificate,
    not_after: SystemTime,
}

/// A certificate of the development authority with its key.
pub struct Issued {
    /// The chain in DER, leaf first; the authority itself is not in it.
    pub chain: Vec<Vec<u8>>,
    /// The key in DER (PKCS#8).
    pub key: Vec<u8>,
    /// The chain in PEM.
    pub chain_pem: String,
    /// The key in PEM.
    pub key_pem: String,
}

impl Issued {
    /// The same, as a configuration would hold it; its files do not exist.
    #[must_use]
    pub fn identity(&self) -> Identity {
        let nowhere = PathBuf::from("(in memory)");
        Identity {
            certificate_file: nowhere.clone(),
            key_file: nowhere,
            chain: self.chain.clone(),
            key: self.key.clone(),
            expires: expiry(&self.chain[0]).unwrap_or(SystemTime::UNIX_EPOCH),
            ocsp_file: None,
            staple: None,
        }
    }
}

impl DevelopmentCa {
    /// Makes an authority with a fresh key.
    ///
    /// # Errors
    /// When the crypto library fails.
    pub fn new() -> Result<DevelopmentCa, IssueError> {
        DevelopmentCa::new_at(SystemTime::now())
    }

    /// Like [`DevelopmentCa::new`], as if made at `now`: tests of expiry need it.
    ///
    /// # Errors
    /// When the crypto library fails.
    pub fn new_at(now: SystemTime) -> Result<DevelopmentCa, IssueError> {
        let not_after = now + DEVELOPMENT_VALIDITY;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "Trunkline development CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = (now - DEVELOPMENT_BACKDATE).into();
        params.not_after = not_after.into();
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.self_signed(&key)?;
        Ok(DevelopmentCa { issuer: Issuer::new(params, key), certificate, not_after })
    }

    /// The authority's certificate in DER: what peers are to trust.
    #[must_use]
    pub fn der(&self) -> Vec<u8> {
        self.certificate.der().to_vec()
    }

    /// The authority's certificate in PEM.
    #[must_use]
    pub fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// The authority as a configuration would hold it; its file does not exist.
    #[must_use]
    pub fn authorities(&self) -> Authorities {
        Authorities { file: PathBuf::from("(in memory)"), roots: vec![self.der()] }
    }

    /// When everything it issues expires.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// A certificate for `names` (DNS names or IP addresses) and, always, for this machine itself: `localhost`,
    /// 127.0.0.1 and ::1. `common_name` says whose it is, to people.
    ///
    /// # Errors
    /// When a name cannot stand in a certificate, or the crypto library fails.
    pub fn issue(&self, common_name: &str, names: &[String], usage: Usage) -> Result<Issued, IssueError> {
        let mut params = CertificateParams::new(names.to_vec())?;
        for own in [
            SanType::DnsName("localhost".try_into()?),
            SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            SanType::IpAddress(IpAddr::V6(Ipv6Addr::LOCALHOST)),
        ] {
            if !params.subject_alt_names.contains(&own) {
                params.subject_alt_names.push(own);
            }
        }
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match usage {
            Usage::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
            Usage::ServerAndClient => {
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
            }
        };
        params.not_before = (self.not_after - DEVELOPMENT_VALIDITY - DEVELOPMENT_BACKDATE).into();
        params.not_after = self.not_after.into();
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Issued {
            chain: vec![certificate.der().to_vec()],
            key: key.serialize_der(),
            chain_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }
}

/// A name that may stand in a certificate: a DNS name (a leading `*.` is allowed) or an IP address.
#[must_use]
pub fn is_certificate_name(name: &str) -> bool {
    let plain = name.strip_prefix("*.").unwrap_or(name);
    rustls_pki_types::ServerName::try_from(plain).is_ok() && (plain == name || plain.parse::<IpAddr>().is_err())
}

/// A name that a server may be asked to prove: a DNS name or an IP address.
#[must_use]
pub fn is_server_name(name: &str) -> bool {
    rustls_pki_types::ServerName::try_from(name).is_ok()
}

/// Where the files of an identity stand in a configuration, for reading them again.
pub(super) fn located(file: &Path, key: impl Into<String>) -> Located<PathBuf> {
    Located { value: file.to_path_buf(), place: Place::of(key) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, name: &str, text: &str) -> Located<PathBuf> {
        use std::os::unix::fs::PermissionsExt as _;
        let path = dir.join(name);
        std::fs::write(&path, text).expect("a temporary directory takes files");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("our own file");
        located(&path, name.to_owned())
    }

    /// The messages that loading this certificate and key gives.
    fn messages(certificate: &str, key: &str) -> (bool, String) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (certificate, key) = (write(dir.path(), "a.pem", certificate), write(dir.path(), "a.key", key));
        let mut problems = Problems::new("t.toml".into());
        let files = IdentityFiles { certificate, key, ocsp: None };
        let loaded = Identity::load(&mut problems, &files, SystemTime::now());
        assert_eq!(loaded.is_none(), problems.has_errors());
        (loaded.is_some(), problems.to_string())
    }

    fn issued() -> (DevelopmentCa, Issued) {
        let ca = DevelopmentCa::new().expect("an authority");
        let issued = ca.issue("pop", &["pop.example".to_owned()], Usage::ServerAndClient).expect("a certificate");
        (ca, issued)
    }

    #[test]
    fn a_development_certificate_loads_without_a_word() {
        let (ca, issued) = issued();
        assert_eq!(messages(&issued.chain_pem, &issued.key_pem), (true, String::new()));
        let chain = issued.chain_pem.clone() + &ca.pem();
        assert_eq!(messages(&chain, &issued.key_pem), (true, String::new()));
    }

    #[test]
    fn keys_that_do_not_fit_are_told_apart() {
        let (ca, one) = issued();
        let other = ca.issue("other", &[], Usage::Server).expect("a certificate");
        let (loaded, text) = messages(&one.chain_pem, &other.key_pem);
        assert!(!loaded && text.contains("does not fit"), "{text}");
        let (loaded, text) = messages(&(ca.pem() + &one.chain_pem), &one.key_pem);
        assert!(!loaded && text.contains("leaf certificate first"), "{text}");
    }

    #[test]
    fn files_that_hold_something_else_are_told_apart() {
        let (_, issued) = issued();
        let cases = [
            (issued.key_pem.as_str(), issued.key_pem.as_str(), "holds a key and no certificate"),
            (&issued.chain_pem, &issued.chain_pem, "holds a certificate and no key"),
            (&issued.chain_pem, "hello", "holds no key"),
            ("hello", &issued.key_pem, "holds no certificate"),
            (
                &issued.chain_pem,
                "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAA==\n-----END ENCRYPTED PRIVATE KEY-----\n",
                "encrypted",
            ),
            ("-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n", &issued.key_pem, "not readable PEM"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", &issued.key_pem, "not an X.509"),
            (&issued.chain_pem, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "not supported"),
        ];
        for (certificate, key, words) in cases {
            let (loaded, text) = messages(certificate, key);
            assert!(!loaded && text.contains(words), "{words}: {text}");
        }
    }

    #[test]
    fn expired_and_future_certificates_are_warned_of() {
        let now = SystemTime::now();
        for (made, words) in [
            (now - DEVELOPMENT_VALIDITY - DEVELOPMENT_VALIDITY, "has expired"),
            (now + DEVELOPMENT_VALIDITY, "not valid before"),
        ] {
            let ca = DevelopmentCa::new_at(made).expect("an authority");
            let issued = ca.issue("x", &[], Usage::Server).expect("a certificate");
            let (loaded, text) = messages(&issued.chain_pem, &issued.key_pem);
            assert!(loaded && text.contains(words) && text.starts_with("warning"), "{text}");
            let (from, until) = validity(&issued.chain[0]).expect("it is a certificate");
            assert!(until < now || from > now);
        }
        assert_eq!(validity(b"none"), None);
    }

    #[test]
    fn a_leaf_given_as_authority_and_an_open_key_are_warned_of() {
        use std::os::unix::fs::PermissionsExt as _;
        let (_, issued) = issued();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut problems = Problems::new("t.toml".into());
        let leaf = write(dir.path(), "leaf.pem", &issued.chain_pem);
        assert!(Authorities::load(&mut problems, &leaf, SystemTime::now()).is_some());
        assert!(problems.to_string().contains("no certificate of an authority"));

        let key = write(dir.path(), "open.key", &issued.key_pem);
        std::fs::set_permissions(&key.value, std::fs::Permissions::from_mode(0o644)).expect("our own file");
        assert!(load_key(&mut problems, &key).is_some());
        assert!(problems.to_string().contains("every user can read the key"));
    }

    #[test]
    fn a_debug_print_shows_no_key() {
        let (_, issued) = issued();
        let text = format!("{:?}", issued.identity());
        assert!(text.contains("chain_certificates: 1") && !text.contains("key:"), "{text}");
    }

    #[test]
    fn names_always_cover_this_machine_and_stand_once() {
        let ca = DevelopmentCa::new().expect("an authority");
        let names = ["localhost".to_owned(), "pop.example".to_owned(), "10.0.0.7".to_owned()];
        let issued = ca.issue("pop", &names, Usage::Server).expect("a certificate");
        let (_, parsed) = X509Certificate::from_der(&issued.chain[0]).expect("our own certificate");
        let names = parsed.subject_alternative_name().expect("well-formed").expect("present").value.general_names.len();
        assert_eq!(names, 5);
        let life = parsed.validity().time_to_expiration().expect("valid now");
        assert!(life.whole_days() >= 364 && life.whole_days() <= 365);
    }

    #[test]
    fn names_for_certificates_are_dns_names_or_addresses() {
        for good in ["localhost", "pop.example", "*.example.com", "10.0.0.7", "::1"] {
            assert!(is_certificate_name(good), "{good}");
        }
        for bad in ["", "a b", "http://x", "x:443", "*.10.0.0.7", "*", "ä.example"] {
            assert!(!is_certificate_name(bad), "{bad}");
        }
    }
}
