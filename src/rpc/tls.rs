//! TLS of the listener, out of PEM files.

use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use std::sync::Arc;

/// Why there is no TLS; never holds what stands in a file.
#[derive(Debug, thiserror::Error)]
pub enum BadTls {
    /// Not certificates.
    #[error("{0}: holds no certificate in PEM, or a broken one")]
    Certificate(&'static str),
    /// Not a private key.
    #[error("tls.key_file: holds no private key in PEM, or a broken one")]
    Key,
    /// They do not go together, or are not understood.
    #[error("tls.cert_file and tls.key_file: {0}")]
    Rustls(#[from] rustls::Error),
    /// Nobody could be trusted.
    #[error("tls.client_ca_file: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// What connections are encrypted with: HTTP/2 and HTTP/1.1, TLS 1.2 and 1.3.
/// With `client_ca` every client must show a certificate of one of these
/// authorities.
///
/// # Errors
/// See [`BadTls`].
pub fn server_config(
    certificates: &[u8],
    key: &[u8],
    client_ca: Option<&[u8]>,
) -> Result<Arc<ServerConfig>, BadTls> {
    let certificates = read(certificates, "tls.cert_file")?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| BadTls::Key)?;
    // Named, since with several providers in a build there is no default one.
    let provider = Arc::new(ring::default_provider());
    let builder =
        ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(authorities) => {
            let mut roots = RootCertStore::empty();
            for authority in read(authorities, "tls.client_ca_file")? {
                roots.add(authority)?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(certificates, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

pub(super) fn read(pem: &[u8], setting: &'static str) -> Result<Vec<CertificateDer<'static>>, BadTls> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    found.ok().filter(|found| !found.is_empty()).ok_or(BadTls::Certificate(setting))
}
