//! Certificates that are exchanged while the router runs (`SIGHUP`).

use std::{fs, net::SocketAddr, path::Path, sync::Arc};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{ClientConfig, RootCertStore, crypto::ring::default_provider, pki_types::ServerName};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::support::*;

type Certificate = rustls::pki_types::CertificateDer<'static>;

/// Puts a new certificate and its key into these files.
fn renew(certificate: &Path, key: &Path) -> Certificate {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(certificate, cert.pem()).unwrap();
    fs::write(key, signing_key.serialize_pem()).unwrap();
    cert.der().clone()
}

/// A connection to who shows this certificate; an error if another one is shown.
async fn trusting(
    certificate: &Certificate,
    address: SocketAddr,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}

async fn ask(connection: &mut TlsStream<TcpStream>) -> String {
    connection
        .write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"main") {
        let mut piece = [0; 1024];
        let read = connection.read(&mut piece).await.unwrap();
        assert!(read > 0, "{}", answer.escape_ascii());
        answer.extend_from_slice(&piece[..read]);
    }
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_after_sighup_and_a_broken_one_changes_nothing() {
    let main = Upstream::named("main", 200).await;
    let folder = Folder::new();
    let (certificate, key) = (folder.write("cert.pem", ""), folder.write("key.pem", ""));
    let first = renew(&certificate, &key);
    let program = Program::start(json!({
        "main-target": main.url(),
        "canary-target": main.url(),
        "router-server": {"tls": {"certificate": certificate, "private-key": key}}
    }))
    .await;
    let mut kept = trusting(&first, program.address).await.unwrap();
    assert!(ask(&mut kept).await.starts_with("HTTP/1.1 200"));

    let second = renew(&certificate, &key);
    assert!(trusting(&second, program.address).await.is_err());
    program.process.signal("HUP");
    soon(async {
        while trusting(&second, program.address).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(trusting(&first, program.address).await.is_err());
    // Who was there stays.
    assert!(ask(&mut kept).await.starts_with("HTTP/1.1 200"));

    fs::write(&key, "no key").unwrap();
    program.process.signal("HUP");
    let says = |text: &str| {
        let log = program.process.log();
        log.iter()
            .any(|line| line["msg"].as_str().unwrap().contains(text))
    };
    eventually(|| says("the configuration stays as it was")).await;
    let metrics = Metrics(get(program.instrumentation, "/metrics", "").await.text());
    let reloads = |result| {
        metrics.value(&format!(
            "canary_router_config_reloads_total{{result=\"{result}\"}}"
        ))
    };
    assert_eq!((reloads("succeeded"), reloads("failed")), (1.0, 1.0));
    let read = metrics.value("canary_router_config_last_reload_success_timestamp_seconds");
    let started = metrics.value("process_start_time_seconds");
    assert!(read >= started, "{read} {started}");
    let mut other = trusting(&second, program.address).await.unwrap();
    assert!(ask(&mut other).await.starts_with("HTTP/1.1 200"));
}
