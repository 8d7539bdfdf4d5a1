//! Whom to trust over https.

use super::target::BadTarget;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem, pem::PemObject as _},
};
use std::{path::Path, sync::Arc};
use tokio_rustls::TlsConnector;

/// Trusts the authorities in `ca_file`, or those of webpki-roots without one.
pub(super) fn connector(ca_file: Option<&Path>) -> Result<TlsConnector, BadTarget> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        Some(path) => {
            for certificate in read(path)? {
                roots.add(certificate).map_err(|error| BadTarget::Certificate(path.to_owned(), error))?;
            }
        }
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
    }
    // Named, since with several providers in a build there is no default one.
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(BadTarget::Tls)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

fn read(path: &Path) -> Result<Vec<CertificateDer<'static>>, BadTarget> {
    let text = std::fs::read(path).map_err(|error| BadTarget::CaFile(path.to_owned(), error))?;
    let found = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, pem::Error>>();
    found.ok().filter(|found| !found.is_empty()).ok_or_else(|| BadTarget::NoCertificate(path.to_owned()))
}
