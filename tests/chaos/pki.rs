//! A CA of the soak's own, what it has certified, and who goes by that.

use std::{cell::RefCell, fs, path::Path, sync::Arc, time::Instant};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, date_time_ymd,
};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::ring::default_provider,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName},
    version::{TLS12, TLS13},
};

/// What the certificates of the router and of the services are for.
const NAMES: [&str; 2] = ["localhost", "127.0.0.1"];

pub const HTTP_1: &[u8] = b"http/1.1";
pub const HTTP_2: &[u8] = b"h2";

/// The CA that everybody trusts, and one that nobody does.
pub struct Pki {
    own: Authority,
    other: Authority,
    roots: Arc<RootCertStore>,
    /// Certificates that the router was given, the last one last.
    leaves: RefCell<Vec<Leaf>>,
}

struct Authority {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate of the router's.
struct Leaf {
    certificate: CertificateDer<'static>,
    /// Since when another one has to be shown.
    retired: Option<Instant>,
}

/// A certificate and its key.
pub struct Identity {
    certificate: Certificate,
    key: KeyPair,
}

/// What is wrong with a service that is not who it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// Nobody trusts who has signed it.
    Authority,
    /// It is somebody else's.
    Name,
    /// It was valid.
    Time,
}

impl Pki {
    pub fn new() -> Result<Pki> {
        let own = Authority::new("the soak")?;
        let mut roots = RootCertStore::empty();
        roots.add(own.certificate.der().clone())?;
        Ok(Pki {
            own,
            other: Authority::new("nobody")?,
            roots: Arc::new(roots),
            leaves: RefCell::default(),
        })
    }

    /// The files that configurations name, but those of the router's certificate.
    pub fn write(&self, folder: &Path) -> Result<()> {
        fs::write(folder.join("ca.pem"), self.own.certificate.pem())?;
        let other = self.identity(None)?;
        fs::write(folder.join("other-key.pem"), other.key.serialize_pem())?;
        Ok(())
    }

    /// For a service; with a flaw, nobody is to speak with it.
    pub fn identity(&self, flaw: Option<Flaw>) -> Result<Identity> {
        let names = match flaw {
            Some(Flaw::Name) => vec!["elsewhere.example".into()],
            _ => NAMES.map(String::from).to_vec(),
        };
        let mut params = CertificateParams::new(names)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        if flaw == Some(Flaw::Time) {
            params.not_after = date_time_ymd(2001, 1, 1);
        }
        let issuer = match flaw {
            Some(Flaw::Authority) => &self.other.issuer,
            _ => &self.own.issuer,
        };
        let key = KeyPair::generate()?;
        Ok(Identity {
            certificate: params.signed_by(&key, issuer)?,
            key,
        })
    }

    /// Writes another certificate for the router, which shows it as soon as it has read it.
    pub fn exchange(&self, folder: &Path) -> Result<()> {
        let identity = self.identity(None)?;
        self.leaves.borrow_mut().push(Leaf {
            certificate: identity.certificate.der().clone(),
            retired: None,
        });
        fs::write(folder.join("router.pem"), identity.certificate.pem())?;
        fs::write(folder.join("router-key.pem"), identity.key.serialize_pem())?;
        Ok(())
    }

    /// The router has read the files: what it showed before it shows no more.
    pub fn is_read(&self) {
        let now = Instant::now();
        let mut leaves = self.leaves.borrow_mut();
        if let Some((_, before)) = leaves.split_last_mut() {
            for leaf in before {
                leaf.retired.get_or_insert(now);
            }
        }
    }

    /// Whether the router may have shown this to a connection that began then.
    pub fn check(&self, shown: &CertificateDer<'_>, began: Instant) -> Result<(), String> {
        let leaves = self.leaves.borrow();
        let leaf = leaves.iter().rev().find(|leaf| leaf.certificate == *shown);
        let Some(leaf) = leaf else {
            return Err("a certificate that the router was not given".into());
        };
        match leaf.retired.filter(|retired| *retired < began) {
            None => Ok(()),
            Some(retired) => Err(format!(
                "a certificate that was replaced {:?} before",
                began - retired
            )),
        }
    }

    /// How to speak TLS to the router, and with what inside.
    pub fn client(&self, protocols: &[&[u8]], is_old: bool) -> Result<Arc<ClientConfig>> {
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(versions(is_old))?
            .with_root_certificates(Arc::clone(&self.roots));
        let mut config = config.with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        Ok(Arc::new(config))
    }

    /// The first that a client says.
    pub fn hello(&self) -> Result<Vec<u8>> {
        let config = self.client(&[HTTP_1], false)?;
        let mut hello = Vec::new();
        ClientConnection::new(config, name()?)?.write_tls(&mut hello)?;
        Ok(hello)
    }
}

/// Whom the router's clients ask for.
pub fn name() -> Result<ServerName<'static>> {
    ServerName::try_from(NAMES[0]).context("a name")
}

const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

fn versions(is_old: bool) -> &'static [&'static SupportedProtocolVersion] {
    match is_old {
        true => &VERSIONS[..1],
        false => &VERSIONS,
    }
}

impl Authority {
    fn new(name: &str) -> Result<Authority> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate()?;
        Ok(Authority {
            certificate: params.self_signed(&key)?,
            issuer: Issuer::new(params, key),
        })
    }
}

impl Identity {
    /// A server that shows it, and takes these protocols.
    pub fn server(&self, protocols: &[&[u8]], is_old: bool) -> Result<Arc<ServerConfig>> {
        let chain = vec![self.certificate.der().clone()];
        let key = PrivatePkcs8KeyDer::from(self.key.serialize_der());
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(versions(is_old))?
            .with_no_client_auth();
        let mut config = config.with_single_cert(chain, key.into())?;
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        Ok(Arc::new(config))
    }
}
