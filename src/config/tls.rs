//! `router-server.tls` and `proxy-client.*.tls`: who we are, and whom we believe.
//!
//! Files are read once, when the configuration is, and what is in them is looked at until it is known that
//! it can be used. Whether a certificate is still valid is not asked: that is its peer's to say, and a
//! router that does not start for it would help nobody.

mod handshake;

use std::{fmt, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, Error, RootCertStore, ServerConfig,
    crypto::ring::default_provider,
    pki_types::{
        CertificateDer, PrivateKeyDer, ServerName,
        pem::{self, PemObject},
    },
    server::ParsedCertificate,
    sign::CertifiedKey,
};

use self::handshake::Offers;
use super::{
    Protocol,
    error::Problems,
    files::read,
    judge::set,
    raw::{ClientTls as RawClientTls, ServerTls as RawServerTls},
};

/// `router-server.tls`: how TLS is spoken to clients. `Debug` does not show the key.
#[derive(Clone)]
pub struct ServerTls {
    /// The router's certificate, those that lead to its CA, and its key.
    pub identity: Arc<CertifiedKey>,
    /// By whom a client's certificate must be signed; at least one, and each can be a trust anchor. `None`
    /// asks for no certificate.
    pub client_ca: Option<Vec<CertificateDer<'static>>>,
    /// What handshakes are made with.
    pub handshake: Arc<ServerConfig>,
}

/// `proxy-client.*.tls`: how TLS is spoken to upstreams. `Debug` does not show the key.
#[derive(Clone, Default)]
pub struct ClientTls {
    /// By whom an upstream's certificate must be signed; at least one, and each can be a trust anchor.
    /// `None` is the roots of the system.
    pub ca: Option<Vec<CertificateDer<'static>>>,
    /// What an upstream is shown that asks for a certificate.
    pub identity: Option<Arc<CertifiedKey>>,
    /// The name that is asked for and verified, instead of the upstream's host.
    pub server_name: Option<ServerName<'static>>,
    /// Take any certificate; not with a `ca`.
    pub insecure_skip_verify: bool,
    /// What handshakes are made with, if there are any.
    offers: Option<Offers>,
}

impl ClientTls {
    /// What to shake hands with; `None` where no upstream of this kind speaks TLS.
    pub fn offer(&self, http1_only: bool) -> Option<&Arc<ClientConfig>> {
        let offers = self.offers.as_ref()?;
        Some(match http1_only {
            true => &offers.http1,
            false => &offers.usual,
        })
    }
}

/// Off unless something is in the section.
pub(super) fn server_tls(
    raw: &RawServerTls,
    http2: bool,
    problems: &mut Problems,
) -> Option<ServerTls> {
    const PATH: &str = "/router-server/tls";
    let (certificate, private_key) = (set(&raw.certificate), set(&raw.private_key));
    let client_ca = set(&raw.client_ca);
    if (certificate, private_key, client_ca) == (None, None, None) {
        return None;
    }
    let identity = identity(PATH, certificate, private_key, problems);
    let client_ca = client_ca.and_then(|file| {
        authorities(file)
            .map_err(|why| problems.add(format!("{PATH}/client-ca"), why))
            .ok()
    });
    let identity = identity?;
    let handshake = handshake::to_clients(&identity, client_ca.as_deref(), http2)
        .map_err(|why| problems.add(format!("{PATH}/client-ca"), why))
        .ok()?;
    Some(ServerTls {
        identity,
        client_ca,
        handshake,
    })
}

/// `path` is that of the client; `protocol` what is spoken to upstreams, if any of them speaks TLS.
pub(super) fn client_tls(
    raw: &RawClientTls,
    path: &str,
    protocol: Option<Protocol>,
    problems: &mut Problems,
) -> ClientTls {
    let path = format!("{path}/tls");
    let insecure_skip_verify = raw.insecure_skip_verify.0;
    let ca = set(&raw.ca);
    if insecure_skip_verify && ca.is_some() {
        problems.add(
            format!("{path}/insecure-skip-verify"),
            "takes any certificate, and /ca beside it says whose are taken: keep one of them",
        );
    }
    let ca = ca.and_then(|file| {
        authorities(file)
            .map_err(|why| problems.add(format!("{path}/ca"), why))
            .ok()
    });
    let identity = match (set(&raw.certificate), set(&raw.private_key)) {
        (None, None) => None,
        (certificate, private_key) => identity(&path, certificate, private_key, problems),
    };
    let server_name = set(&raw.server_name).and_then(|name| {
        let parsed = ServerName::try_from(name.to_owned());
        parsed
            .map_err(|_| {
                problems.add(
                    format!("{path}/server-name"),
                    format!(
                        "{name:?} is neither a host name nor an address: write it as \
                         \"service.example\", without a port"
                    ),
                );
            })
            .ok()
    });
    let mut tls = ClientTls {
        ca,
        identity,
        server_name,
        insecure_skip_verify,
        offers: None,
    };
    // What is missing for another reason has been told.
    let is_whole = !problems.has(&format!("{path}/ca"));
    if let Some(protocol) = protocol.filter(|_| is_whole) {
        tls.offers = handshake::offers(&tls, protocol)
            .map_err(|why| problems.add(format!("{path}/ca"), why))
            .ok();
    }
    tls
}

/// What is said of TLS to a client that speaks none; `why` is where it could. (`insecure-skip-verify` alone
/// is in many an old file.)
pub(super) fn refuse_without_tls(
    raw: &RawClientTls,
    path: &str,
    why: &str,
    problems: &mut Problems,
) {
    for (key, value) in [
        ("ca", &raw.ca),
        ("certificate", &raw.certificate),
        ("private-key", &raw.private_key),
        ("server-name", &raw.server_name),
    ] {
        if set(value).is_some() {
            problems.add(
                format!("{path}/tls/{key}"),
                format!("has no effect: {why}; write that, or take this out"),
            );
        }
    }
}

/// A certificate and its key, which belong together.
fn identity(
    path: &str,
    certificate: Option<&str>,
    private_key: Option<&str>,
    problems: &mut Problems,
) -> Option<Arc<CertifiedKey>> {
    let chain = match certificate {
        Some(file) => chain(file),
        None => Err(
            "is missing: name the PEM file with the certificate, and behind it those that \
                     lead to its CA"
                .to_owned(),
        ),
    };
    let chain = chain
        .map_err(|why| problems.add(format!("{path}/certificate"), why))
        .ok();
    let key_path = format!("{path}/private-key");
    let key = match private_key {
        Some(file) => key(file).map(|key| (file, key)),
        None => Err(
            "is missing: name the PEM file with the key of the certificate; it may be the same \
             file"
                .to_owned(),
        ),
    };
    let key = key.map_err(|why| problems.add(&*key_path, why)).ok();
    let (chain, (file, key)) = (chain?, key?);
    let why = match CertifiedKey::from_der(chain, key, &default_provider()) {
        Ok(identity) => return Some(Arc::new(identity)),
        Err(Error::InconsistentKeys(_)) => format!(
            "the key in {file:?} is not that of the certificate: name the key that the first \
             certificate of /certificate beside it was made for"
        ),
        Err(_) => format!(
            "the key in {file:?} is of a kind that is not known: use an EC key (P-256 or P-384), \
             Ed25519, or RSA with 2048 to 4096 bits"
        ),
    };
    problems.add(key_path, why);
    None
}

/// A certificate and those that lead to its CA.
fn chain(file: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = certificates(file)?;
    // What follows is for others to read.
    if let Some(certificate) = certificates.first() {
        ParsedCertificate::try_from(certificate).map_err(|error| unusable(file, 1, &error))?;
    }
    Ok(certificates)
}

/// Certificates by which others are signed.
fn authorities(file: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = certificates(file)?;
    let mut roots = RootCertStore::empty();
    for (i, certificate) in certificates.iter().enumerate() {
        roots
            .add(certificate.clone())
            .map_err(|error| unusable(file, i + 1, &error))?;
    }
    Ok(certificates)
}

/// At least one.
fn certificates(file: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let content = read(file)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&content).collect();
    match found {
        Ok(found) if found.is_empty() => Err(format!(
            "there is no certificate in {file:?}: name a PEM file, which has them between lines such \
             as \"-----BEGIN CERTIFICATE-----\""
        )),
        Ok(found) => Ok(found),
        Err(error) => Err(not_pem(file, &error)),
    }
}

/// The only one.
fn key(file: &str) -> Result<PrivateKeyDer<'static>, String> {
    let content = read(file)?;
    // "ENCRYPTED PRIVATE KEY" (RFC 5958), or "Proc-Type: 4,ENCRYPTED" in older files.
    if memchr::memmem::find(&content, b"ENCRYPTED").is_some() {
        return Err(format!(
            "the key in {file:?} has a passphrase, and nobody is there to type it: \
             `openssl pkey -in FILE -out NEW` writes it without one"
        ));
    }
    let found: Result<Vec<_>, _> = PrivateKeyDer::pem_slice_iter(&content).collect();
    let mut found = found.map_err(|error| not_pem(file, &error))?;
    match (found.pop(), found.len()) {
        (Some(key), 0) => Ok(key),
        (Some(_), others) => Err(format!(
            "there are {} private keys in {file:?}: leave the one of the certificate in it",
            others + 1
        )),
        (None, _) => Err(format!(
            "there is no private key in {file:?}: name a PEM file, which has it between lines such as \
             \"-----BEGIN PRIVATE KEY-----\""
        )),
    }
}

/// The library's own words would show bytes of the file.
fn not_pem(file: &str, error: &pem::Error) -> String {
    let why = match error {
        pem::Error::MissingSectionEnd { .. } => "the END line of a section is missing",
        pem::Error::IllegalSectionStart { .. } => "a BEGIN line has not all of its dashes",
        pem::Error::Base64Decode(_) => "what stands between BEGIN and END is not base64",
        _ => "it cannot be understood",
    };
    format!("{file:?} is not a PEM file: {why}; copy it anew from where it came from")
}

fn unusable(file: &str, number: usize, error: &Error) -> String {
    let why = match error {
        Error::InvalidCertificate(CertificateError::Other(why)) => why.to_string(),
        Error::InvalidCertificate(why) => why.to_string(),
        error => error.to_string(),
    };
    format!(
        "certificate {number} in {file:?} cannot be used ({why}): have it made anew, as an X.509 \
         certificate of version 3"
    )
}

impl fmt::Debug for ServerTls {
    /// Of certificates how many there are.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls")
            .field("certificates", &self.identity.cert.len())
            .field("client_ca", &self.client_ca.as_ref().map(Vec::len))
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ClientTls {
    /// Of certificates how many there are.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let certificates = self.identity.as_ref().map(|identity| identity.cert.len());
        f.debug_struct("ClientTls")
            .field("ca", &self.ca.as_ref().map(Vec::len))
            .field("certificates", &certificates)
            .field("server_name", &self.server_name)
            .field("insecure_skip_verify", &self.insecure_skip_verify)
            .finish_non_exhaustive()
    }
}

impl PartialEq for ServerTls {
    fn eq(&self, other: &ServerTls) -> bool {
        // Keys cannot be compared, and need not be: the first certificate says which one it is.
        self.identity.cert == other.identity.cert && self.client_ca == other.client_ca
    }
}

impl Eq for ServerTls {}

impl PartialEq for ClientTls {
    fn eq(&self, other: &ClientTls) -> bool {
        let certificate = |tls: &ClientTls| tls.identity.as_ref().map(|own| own.cert.clone());
        self.ca == other.ca
            && certificate(self) == certificate(other)
            && self.server_name == other.server_name
            && self.insecure_skip_verify == other.insecure_skip_verify
    }
}

impl Eq for ClientTls {}

#[cfg(test)]
mod tests;
