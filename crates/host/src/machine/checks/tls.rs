//! The TLS of a check: the server's own roots decide whom it trusts, or nobody does.
//!
//! Never falls back to an unchecked connection: that takes `tls_skip_verify`.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use perch_types::error::chain;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use rustls_platform_verifier::Verifier;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::attempt::Request;

/// Speaks TLS over a connection to `address`.
pub(super) async fn connect(
    stream: TcpStream,
    request: &Request,
    address: IpAddr,
) -> Result<TlsStream<TcpStream>, String> {
    let name = match &request.server_name {
        Some(name) => ServerName::try_from(name.clone())
            .map_err(|_| format!("`{name}` is no name of a server"))?,
        None => ServerName::IpAddress(address.into()),
    };
    let config = config(request.skip_verify)?;
    TlsConnector::from(config)
        .connect(name, stream)
        .await
        .map_err(|error| format!("speak TLS: {}", chain(&error)))
}

/// Returns one of the two configurations, made once.
fn config(skip_verify: bool) -> Result<Arc<ClientConfig>, String> {
    static VERIFIED: OnceLock<Result<Arc<ClientConfig>, String>> = OnceLock::new();
    static UNVERIFIED: OnceLock<Result<Arc<ClientConfig>, String>> = OnceLock::new();
    let made = if skip_verify { &UNVERIFIED } else { &VERIFIED };
    made.get_or_init(|| make(skip_verify).map_err(|error| format!("set up TLS: {error}"))).clone()
}

fn make(skip_verify: bool) -> Result<Arc<ClientConfig>, Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = if skip_verify {
        Arc::new(AnyCertificate { provider: Arc::clone(&provider) })
    } else {
        Arc::new(Verifier::new(Arc::clone(&provider))?)
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // A check remembers nothing of the one before.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// Trusts every certificate, but still wants the server to hold its key.
#[derive(Debug)]
struct AnyCertificate {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
