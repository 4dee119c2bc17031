//! A certificate that signs itself, the same for all that are compared. Files in the bench's folder,
//! which is where the proxies run: the names do for their configurations.

use anyhow::Result;
use rcgen::{CertifiedKey, generate_simple_self_signed};

use super::process::Folder;

/// Whose it is.
pub const HOST: &str = "bench.example";
/// ECDSA P-256, as most certificates are today.
pub const CERTIFICATE: &str = "certificate.pem";
pub const KEY: &str = "key.pem";
/// Both in one file: haproxy will have it so.
pub const BOTH: &str = "both.pem";

/// Once per run of the bench.
pub fn write(folder: &Folder) -> Result<()> {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed([HOST.to_owned()])?;
    let (certificate, key) = (cert.pem(), signing_key.serialize_pem());
    folder.write(CERTIFICATE, &certificate)?;
    folder.write(KEY, &key)?;
    folder.write(BOTH, &format!("{certificate}{key}"))?;
    Ok(())
}
