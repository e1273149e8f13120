//! TCP connections with a number, whose end is told.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{Stream, stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::server::{Connected, TlsConnectInfo};

/// How long the server waits after it could not accept a connection, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The number of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ConnectionId(u64);

/// Hears of connections.
pub(super) trait Listener: Send + Sync + 'static {
    /// The connection has begun; no request has come on it yet.
    fn connection_began(&self, id: ConnectionId);

    /// The connection has ended, whoever ended it.
    fn connection_ended(&self, id: ConnectionId);
}

/// A connection of a client.
pub(super) struct Connection<L: Listener> {
    stream: TcpStream,
    id: ConnectionId,
    listener: Arc<L>,
}

impl<L: Listener> Drop for Connection<L> {
    fn drop(&mut self) {
        self.listener.connection_ended(self.id);
    }
}

/// Accepts connections for ever.
pub(super) fn accept<L: Listener>(
    socket: TcpListener,
    listener: Arc<L>,
) -> impl Stream<Item = io::Result<Connection<L>>> + Send {
    let last = AtomicU64::new(0);
    stream::unfold((socket, listener, last), |(socket, listener, last)| async move {
        let stream = loop {
            match socket.accept().await {
                Ok((stream, _)) => break stream,
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        };
        let id = ConnectionId(last.fetch_add(1, Ordering::Relaxed));
        // Answers are short messages that somebody waits for.
        let stream = stream.set_nodelay(true).map(|()| {
            listener.connection_began(id);
            Connection { stream, id, listener: Arc::clone(&listener) }
        });
        Some((stream, (socket, listener, last)))
    })
}

/// What a request knows of its connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConnectionInfo {
    pub(super) id: ConnectionId,
}

impl ConnectionInfo {
    /// Returns the connection that a request came on.
    pub(super) fn of(extensions: &tonic::Extensions) -> Option<Self> {
        let encrypted = || extensions.get::<TlsConnectInfo<ConnectionInfo>>().map(TlsConnectInfo::get_ref);
        extensions.get::<ConnectionInfo>().or_else(encrypted).copied()
    }
}

impl<L: Listener> Connected for Connection<L> {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        ConnectionInfo { id: self.id }
    }
}

impl<L: Listener> AsyncRead for Connection<L> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<L: Listener> AsyncWrite for Connection<L> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
