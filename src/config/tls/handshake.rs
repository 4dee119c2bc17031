//! What handshakes are made with: out of what is configured, once, when the configuration is read.
//!
//! At least TLS 1.2, and what rustls takes for safe, which is not configurable: nobody was ever glad to
//! have configured a cipher.

use std::sync::Arc;

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring::default_provider},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::WebPkiClientVerifier,
    sign::{CertifiedKey, SingleCertAndKey},
};

use super::ClientTls;
use crate::{config::Protocol, roots};

const HTTP_1: &[u8] = b"http/1.1";
/// Some old clients offer nothing else.
const HTTP_1_0: &[u8] = b"http/1.0";
const HTTP_2: &[u8] = b"h2";

/// What upstreams of one kind are offered.
#[derive(Clone)]
pub(super) struct Offers {
    /// The protocols that are configured.
    pub usual: Arc<ClientConfig>,
    /// HTTP/1.1 alone: what is to become a tunnel cannot be had otherwise of every upstream.
    pub http1: Arc<ClientConfig>,
}

/// To upstreams that are spoken to like this. Reads the system's root certificates, unless there are others.
pub(super) fn offers(tls: &ClientTls, protocol: Protocol) -> Result<Offers, String> {
    let offer = |protocols: &[&[u8]]| {
        let mut config = client_config(tls)?;
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        Ok::<_, String>(Arc::new(config))
    };
    let http1 = offer(&[HTTP_1])?;
    Ok(Offers {
        usual: match protocol {
            Protocol::Http1 => Arc::clone(&http1),
            Protocol::Http2 => offer(&[HTTP_2])?,
            Protocol::Auto => offer(&[HTTP_2, HTTP_1])?,
        },
        http1,
    })
}

fn client_config(tls: &ClientTls) -> Result<ClientConfig, String> {
    let provider = Arc::new(default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?;
    let builder = match (tls.insecure_skip_verify, &tls.ca) {
        (true, _) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(TrustAnyone(provider))),
        (false, Some(ca)) => builder.with_root_certificates(store(ca)),
        (false, None) => builder.with_root_certificates(roots::system().map_err(|why| {
            format!(
                "no root certificates were found to verify https:// upstreams with ({why}): install the \
                 system's CA certificates (Debian: ca-certificates), point SSL_CERT_FILE at a bundle, or \
                 name one here"
            )
        })?),
    };
    Ok(match &tls.identity {
        None => builder.with_no_client_auth(),
        Some(identity) => builder
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(identity)))),
    })
}

/// Each of them is known to be of use.
fn store(certificates: &[CertificateDer<'static>]) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates.iter().cloned());
    roots
}

/// To clients.
pub(super) fn to_clients(
    identity: &Arc<CertifiedKey>,
    client_ca: Option<&[CertificateDer<'static>]>,
    http2: bool,
) -> Result<Arc<ServerConfig>, String> {
    let provider = Arc::new(default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let roots = Arc::new(store(ca));
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
            builder.with_client_cert_verifier(
                verifier.map_err(|error| format!("clients cannot be verified with it: {error}"))?,
            )
        }
    };
    let mut config =
        builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(identity))));
    config.alpn_protocols = match http2 {
        true => vec![HTTP_2.to_vec(), HTTP_1.to_vec(), HTTP_1_0.to_vec()],
        false => vec![HTTP_1.to_vec(), HTTP_1_0.to_vec()],
    };
    Ok(Arc::new(config))
}

fn unusable(error: rustls::Error) -> String {
    format!("TLS cannot be set up: {error}")
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
