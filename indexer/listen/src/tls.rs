//! Certificate and key: those that are configured, or a pair made here and kept.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or written.
    #[error("{}: {source}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{}: {why}", .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Certificate and key do not fit.
    #[error("the certificate in {} cannot be used with its key: {why}", .path.display())]
    Unusable {
        /// The certificate.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// No certificate can be made.
    #[error("a certificate cannot be made: {0}")]
    Make(String),
}

/// Files of a certificate chain and its key, both PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The certificate, and those above it.
    pub certificate: PathBuf,
    /// The key.
    pub key: PathBuf,
}

/// The pair kept in a folder, made there if it is not: self-signed, for these host names, the key
/// readable by its owner alone.
pub fn own_pair(folder: &Path, hosts: &[String]) -> Result<Pair, TlsError> {
    let pair = Pair {
        certificate: folder.join("tls-cert.pem"),
        key: folder.join("tls-key.pem"),
    };
    if pair.certificate.exists() && pair.key.exists() {
        return Ok(pair);
    }
    let make = |e: rcgen::Error| TlsError::Make(e.to_string());
    let made = rcgen::generate_simple_self_signed(hosts.to_vec()).map_err(make)?;
    fs::create_dir_all(folder).map_err(failed(folder))?;
    // The key first: a certificate without one would never be mended.
    write(&pair.key, 0o600, &made.signing_key.serialize_pem())?;
    write(&pair.certificate, 0o644, &made.cert.pem())?;
    Ok(pair)
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> TlsError {
    let path = path.to_owned();
    move |source| TlsError::File { path, source }
}

/// Writes a file as a whole or not at all, with its mode from the first byte on.
fn write(path: &Path, mode: u32, text: &str) -> Result<(), TlsError> {
    let new = path.with_extension("new");
    let _ = fs::remove_file(&new);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(mode);
    let mut file = options.open(&new).map_err(failed(&new))?;
    file.write_all(text.as_bytes()).map_err(failed(&new))?;
    file.sync_all().map_err(failed(&new))?;
    fs::rename(&new, path).map_err(failed(path))
}

/// Reads a pair.
pub fn acceptor(pair: &Pair) -> Result<TlsAcceptor, TlsError> {
    let read = |path: &Path| fs::read(path).map_err(failed(path));
    let content = |path: &Path, why: String| TlsError::Content {
        path: path.to_owned(),
        why,
    };
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(&read(&pair.certificate)?)
            .collect::<Result<_, _>>()
            .map_err(|e| content(&pair.certificate, e.to_string()))?;
    if chain.is_empty() {
        return Err(content(
            &pair.certificate,
            "it holds no certificate".to_owned(),
        ));
    }
    let key = PrivateKeyDer::from_pem_slice(&read(&pair.key)?)
        .map_err(|e| content(&pair.key, format!("it holds no key: {e}")))?;
    let unusable = |e: tokio_rustls::rustls::Error| TlsError::Unusable {
        path: pair.certificate.clone(),
        why: e.to_string(),
    };
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(unusable)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_pair_is_made_once_and_can_be_used() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("deep");
        let pair = own_pair(&folder, &["localhost".to_owned()]).unwrap();
        let mode = fs::metadata(&pair.key).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        acceptor(&pair).unwrap();
        let before = fs::read(&pair.key).unwrap();
        assert_eq!(own_pair(&folder, &["other".to_owned()]).unwrap(), pair);
        assert_eq!(fs::read(&pair.key).unwrap(), before);
        fs::write(&pair.certificate, "nothing").unwrap();
        let said = acceptor(&pair).err().unwrap().to_string();
        assert!(
            said.contains("tls-cert.pem") && said.contains("no certificate"),
            "{said}"
        );
        fs::remove_file(&pair.certificate).unwrap();
        let said = acceptor(&pair).err().unwrap().to_string();
        assert!(said.contains("tls-cert.pem"), "{said}");
    }
}
