//! TLS on both sides: towards upstreams, and towards clients.
//!
//! At least TLS 1.2, and what rustls takes for safe, which is not configurable: nobody was ever glad to
//! have configured a cipher.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::WebPkiClientVerifier,
    sign::SingleCertAndKey,
};

use crate::{
    config::{ClientTls, Config, Protocol, Server, ServerTls, Upstream},
    roots,
};

const HTTP_1: &[u8] = b"http/1.1";
/// Some old clients offer nothing else.
const HTTP_1_0: &[u8] = b"http/1.0";
const HTTP_2: &[u8] = b"h2";

/// How TLS is spoken to the upstreams of one kind; can be replaced. Cheap to clone.
#[derive(Clone)]
pub struct Tls(Option<Arc<ArcSwap<Offers>>>);

/// How TLS is spoken to clients; can be replaced. Cheap to clone.
#[derive(Clone)]
pub struct ServedTls(Arc<ArcSwap<ServerConfig>>);

struct Offers {
    /// The protocols that are configured.
    usual: Arc<ClientConfig>,
    /// HTTP/1.1 alone: what is to become a tunnel cannot be had otherwise of every upstream.
    http1: Arc<ClientConfig>,
}

/// TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// There is nothing to verify a certificate with.
    #[error(
        "no root certificates were found to verify https:// upstreams with ({0}): install the \
         system's CA certificates (Debian: ca-certificates), point SSL_CERT_FILE at a bundle, or name \
         one with /proxy-client/…/tls/ca"
    )]
    NoRoots(String),
    /// None of them can be used.
    #[error("{0}: none of its certificates can be used to verify others with")]
    UselessRoots(&'static str),
    /// The library refuses.
    #[error("TLS cannot be set up: {0}")]
    Rustls(#[from] rustls::Error),
    /// The library refuses to verify clients.
    #[error("/router-server/tls/client-ca: clients cannot be verified with it: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// How TLS is spoken to everybody.
#[derive(Clone)]
pub struct TlsSettings {
    /// To clients, where it is.
    pub clients: Option<ServedTls>,
    /// To main and canary.
    pub services: Tls,
    /// To the sidecar.
    pub sidecar: Tls,
}

impl TlsSettings {
    /// Reads the system's root certificates, if any upstream speaks TLS and has none of its own.
    ///
    /// # Errors
    /// There are no root certificates, but they are needed; or the library refuses what is configured.
    pub fn new(config: &Config) -> Result<TlsSettings, TlsError> {
        let services = [&config.main, &config.canary];
        let sidecar = config.sidecar.as_ref().map(|sidecar| &sidecar.upstream);
        let clients = server_config(&config.server)?;
        Ok(TlsSettings {
            clients: clients.map(|clients| ServedTls(Arc::new(ArcSwap::new(clients)))),
            services: Tls::new(services.into_iter().find(|upstream| upstream.tls))?,
            sidecar: Tls::new(sidecar.filter(|upstream| upstream.tls))?,
        })
    }

    /// Has new connections made with the certificates, keys and roots of these, where TLS is spoken now and
    /// by these. Connections that there are go on.
    pub fn replace(&self, with: &TlsSettings) {
        if let (Some(old), Some(new)) = (&self.clients, &with.clients) {
            old.0.store(new.0.load_full());
        }
        for (old, new) in [
            (&self.services, &with.services),
            (&self.sidecar, &with.sidecar),
        ] {
            if let (Some(old), Some(new)) = (&old.0, &new.0) {
                old.store(new.load_full());
            }
        }
    }
}

impl ServedTls {
    /// What to shake hands with.
    pub fn current(&self) -> Arc<ServerConfig> {
        self.0.load_full()
    }
}

impl Tls {
    fn new(upstream: Option<&Upstream>) -> Result<Tls, TlsError> {
        let Some(upstream) = upstream else {
            return Ok(Tls(None));
        };
        let offer = |protocols: &[&[u8]]| {
            let mut config = client_config(&upstream.client_tls)?;
            config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
            Ok::<_, TlsError>(Arc::new(config))
        };
        let http1 = offer(&[HTTP_1])?;
        Ok(Tls(Some(Arc::new(ArcSwap::from_pointee(Offers {
            usual: match upstream.client.protocol {
                Protocol::Http1 => Arc::clone(&http1),
                Protocol::Http2 => offer(&[HTTP_2])?,
                Protocol::Auto => offer(&[HTTP_2, HTTP_1])?,
            },
            http1,
        })))))
    }

    /// What to shake hands with; `None` where no upstream of this kind speaks TLS.
    pub fn offer(&self, http1_only: bool) -> Option<Arc<ClientConfig>> {
        let offers = self.0.as_ref()?.load();
        Some(Arc::clone(match http1_only {
            true => &offers.http1,
            false => &offers.usual,
        }))
    }
}

fn client_config(settings: &ClientTls) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?;
    let builder = match (settings.insecure_skip_verify, &settings.ca) {
        (true, _) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(TrustAnyone(provider))),
        (false, Some(ca)) => builder.with_root_certificates(roots(ca, "/proxy-client/…/tls/ca")?),
        (false, None) => {
            builder.with_root_certificates(roots::system().map_err(TlsError::NoRoots)?)
        }
    };
    Ok(match &settings.identity {
        None => builder.with_no_client_auth(),
        Some(identity) => builder
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(identity)))),
    })
}

fn roots(
    certificates: &[CertificateDer<'static>],
    key: &'static str,
) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    match roots.add_parsable_certificates(certificates.iter().cloned()) {
        (0, _) => Err(TlsError::UselessRoots(key)),
        _ => Ok(roots),
    }
}

fn server_config(server: &Server) -> Result<Option<Arc<ServerConfig>>, TlsError> {
    let Some(ServerTls {
        identity,
        client_ca,
    }) = &server.tls
    else {
        return Ok(None);
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let roots = Arc::new(roots(ca, "/router-server/tls/client-ca")?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build()?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config =
        builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(identity))));
    config.alpn_protocols = match server.http2 {
        true => vec![HTTP_2.to_vec(), HTTP_1.to_vec(), HTTP_1_0.to_vec()],
        false => vec![HTTP_1.to_vec(), HTTP_1_0.to_vec()],
    };
    Ok(Some(Arc::new(config)))
}

/// `insecure-skip-verify`: takes any certificate, but still checks that the peer holds its key.
#[derive(Debug)]
struct TrustAnyone(Arc<CryptoProvider>);

impl ServerCertVerifier for TrustAnyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
