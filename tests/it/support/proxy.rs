//! A proxy between clients and a node that cuts connections, as bad middle boxes do.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rand::Rng as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
};

use super::{pause, spawn};

/// Cuts a share of the connections it is told to, each second.
pub(crate) struct Proxy {
    pub(crate) addr: SocketAddr,
    faults: Arc<Faults>,
}

/// Connections per thousand that are cut in a second.
#[derive(Default)]
struct Faults {
    websocket: AtomicU64,
    sse: AtomicU64,
    cut: AtomicU64,
}

impl Proxy {
    pub(crate) async fn before(node: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let faults = Arc::new(Faults::default());
        let shared = Arc::clone(&faults);
        spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                spawn(carry(client, node, Arc::clone(&shared)));
            }
        });
        Self { addr, faults }
    }

    pub(crate) fn cut_websockets(&self, per_mille: u64) {
        self.faults.websocket.store(per_mille, Ordering::Relaxed);
    }

    pub(crate) fn cut_streams(&self, per_mille: u64) {
        self.faults.sse.store(per_mille, Ordering::Relaxed);
    }

    /// How many it has cut.
    pub(crate) fn cuts(&self) -> u64 {
        self.faults.cut.load(Ordering::Relaxed)
    }
}

async fn carry(mut client: TcpStream, node: SocketAddr, faults: Arc<Faults>) -> Option<()> {
    let mut server = TcpStream::connect(node).await.ok()?;
    let mut head = [0; 1024];
    let len = client.read(&mut head).await.ok()?;
    server.write_all(&head[..len]).await.ok()?;
    let text = String::from_utf8_lossy(&head[..len]);
    let rate = match text.split(' ').nth(1)?.split('?').next()? {
        "/ws" => &faults.websocket,
        "/events" => &faults.sse,
        _ => return copy_bidirectional(&mut client, &mut server).await.ok().map(drop),
    };
    let bad_luck = async {
        loop {
            pause(Duration::from_secs(1)).await;
            if rand::rng().random_range(0..1000) < rate.load(Ordering::Relaxed) {
                return;
            }
        }
    };
    tokio::select! {
        _ = copy_bidirectional(&mut client, &mut server) => {}
        () = bad_luck => {
            faults.cut.fetch_add(1, Ordering::Relaxed);
        }
    }
    Some(())
}
