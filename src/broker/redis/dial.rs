//! A bare stream to a server, for the listening connection: TCP, TLS or a Unix socket, and the
//! password given.

use std::{io, sync::Arc, time::Duration};

use bytes::BytesMut;
use redis::{ConnectionAddr, ConnectionInfo};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::resp::{self, Reply};

/// Whatever bytes travel over.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// Connects and introduces itself.
pub(crate) async fn dial(info: &ConnectionInfo, within: Duration) -> io::Result<Box<dyn Wire>> {
    let dialled = async {
        let mut wire = open(info.addr()).await?;
        introduce(&mut wire, info).await?;
        Ok(wire)
    };
    timeout(within, dialled).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn open(addr: &ConnectionAddr) -> io::Result<Box<dyn Wire>> {
    match addr {
        ConnectionAddr::Tcp(host, port) => Ok(Box::new(tcp(host, *port).await?)),
        ConnectionAddr::TcpTls { host, port, .. } => {
            let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
            let connector = TlsConnector::from(Arc::new(trust()?));
            Ok(Box::new(connector.connect(name, tcp(host, *port).await?).await?))
        }
        ConnectionAddr::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
        _ => Err(io::Error::other("this kind of address is not supported")),
    }
}

async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The same trust as that of the connections for commands: what the system trusts.
fn trust() -> io::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if let (true, Some(error)) = (roots.is_empty(), found.errors.into_iter().next()) {
        return Err(io::Error::other(error));
    }
    Ok(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}

async fn introduce(wire: &mut Box<dyn Wire>, info: &ConnectionInfo) -> io::Result<()> {
    let settings = info.redis_settings();
    let Some(password) = settings.password() else { return Ok(()) };
    let mut words: Vec<&[u8]> = vec![b"AUTH"];
    words.extend(settings.username().map(str::as_bytes));
    words.push(password.as_bytes());
    let mut buffer = BytesMut::new();
    resp::put(&mut buffer, &words);
    wire.write_all_buf(&mut buffer).await?;
    loop {
        match resp::take(&mut buffer) {
            Ok(Some(Reply::Status)) => return Ok(()),
            Ok(Some(Reply::Error(why))) => {
                return Err(io::Error::other(String::from_utf8_lossy(&why).into_owned()));
            }
            Ok(None) if wire.read_buf(&mut buffer).await? == 0 => {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(None) => {}
            Ok(Some(Reply::Array(_))) | Err(_) => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}
