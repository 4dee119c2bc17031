//! The system's root certificates, for whoever speaks TLS to somebody without a CA of his own.

use rustls::RootCertStore;

/// Those of the system, or of `SSL_CERT_FILE`.
///
/// # Errors
/// There are none; with what the system said.
pub fn system() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
        return Err(why.join("; "));
    }
    Ok(roots)
}
