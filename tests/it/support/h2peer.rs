//! HTTP/2 by peers that do as they should: a scripted service and a client.

use std::{
    future::poll_fn,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, client, server};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;

use super::{Gate, listen, soon};

/// Fields in the short.
pub type Pairs<'a> = &'a [(&'a str, &'a str)];

pub fn fields(pairs: Pairs) -> HeaderMap {
    let parsed = pairs.iter().map(|(name, value)| {
        (
            name.parse::<HeaderName>().unwrap(),
            value.parse::<HeaderValue>().unwrap(),
        )
    });
    parsed.collect()
}

/// What a service does next on a stream.
#[derive(Debug, Clone)]
pub enum Do {
    /// An informational response.
    Hint(u16, HeaderMap),
    /// The head of the response.
    Head(u16, HeaderMap),
    /// The head of a response without a body.
    Whole(u16, HeaderMap),
    /// A part of the body, as far as the other side takes it.
    Data(Vec<u8>),
    /// The end of the body.
    End,
    /// The end of the body, with trailers.
    Trailers(HeaderMap),
    /// RST_STREAM.
    Reset(Reason),
    /// Reads the body to its end, and notes the request as whole.
    Read,
    /// Sends back what comes, to the end.
    Echo,
    /// Takes no more streams on this connection.
    GoAway,
    /// Ends the connection with this error.
    Abort(Reason),
    /// Ends the connection without a word.
    Drop,
    Pause(Duration),
    Wait(Gate),
    /// Nothing more, until the other side resets the stream.
    Hang,
}

/// A complete response.
pub fn answers(status: u16, headers: Pairs, body: &str) -> Vec<Do> {
    vec![
        Do::Head(status, fields(headers)),
        Do::Data(body.into()),
        Do::End,
    ]
}

/// A request as it came in.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    pub scheme: Option<String>,
    pub authority: Option<String>,
    /// With the query.
    pub path: String,
    /// `:protocol`.
    pub protocol: Option<String>,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: HeaderMap,
}

impl Asked {
    fn new(head: &http::request::Parts) -> Asked {
        let text = |part: Option<&str>| part.map(str::to_owned);
        Asked {
            method: head.method.to_string(),
            scheme: text(head.uri.scheme_str()),
            authority: text(head.uri.authority().map(|authority| authority.as_str())),
            path: head
                .uri
                .path_and_query()
                .map_or_else(String::new, |path| path.to_string()),
            protocol: text(
                head.extensions
                    .get::<h2::ext::Protocol>()
                    .map(|protocol| protocol.as_str()),
            ),
            headers: head.headers.clone(),
            body: Vec::new(),
            trailers: HeaderMap::new(),
        }
    }

    /// The only value of a header.
    #[track_caller]
    pub fn header(&self, name: &str) -> Option<&str> {
        only(&self.headers, name)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// The only value of a field.
#[track_caller]
pub fn only<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let all: Vec<_> = headers.get_all(name).iter().collect();
    assert!(all.len() < 2, "{name} more than once: {headers:?}");
    all.first().map(|value| value.to_str().unwrap())
}

/// When a service looks into its script.
#[derive(Debug, Clone, Copy)]
pub enum When {
    /// When the head of a request has come in.
    Head,
    /// When all of it has.
    Whole,
}

type Script = dyn Fn(&Asked) -> Vec<Do> + Send + Sync;

/// What a service knows of what was done to it.
#[derive(Default)]
struct Ledger {
    heads: Mutex<Vec<Asked>>,
    seen: Mutex<Vec<Asked>>,
    resets: Mutex<Vec<Reason>>,
    open: AtomicUsize,
    most_open: AtomicUsize,
    connections: AtomicUsize,
    open_connections: AtomicUsize,
}

/// A scripted service that speaks HTTP/2, and nothing else.
pub struct H2Upstream {
    pub address: SocketAddr,
    ledger: Arc<Ledger>,
    server: JoinHandle<()>,
}

impl H2Upstream {
    /// For each request whose body has come in, does what `script` says.
    pub async fn start(script: impl Fn(&Asked) -> Vec<Do> + Send + Sync + 'static) -> H2Upstream {
        H2Upstream::with(server::Builder::new(), None, When::Whole, script)
    }

    /// For each request whose head has come in, does what `script` says.
    pub async fn eager(script: impl Fn(&Asked) -> Vec<Do> + Send + Sync + 'static) -> H2Upstream {
        H2Upstream::with(server::Builder::new(), None, When::Head, script)
    }

    /// The same, with settings of its own, and with TLS.
    pub fn with(
        builder: server::Builder,
        tls: Option<TlsAcceptor>,
        when: When,
        script: impl Fn(&Asked) -> Vec<Do> + Send + Sync + 'static,
    ) -> H2Upstream {
        H2Upstream::on(listen(), builder, tls, when, script)
    }

    /// On this listener.
    pub fn on(
        listener: TcpListener,
        builder: server::Builder,
        tls: Option<TlsAcceptor>,
        when: When,
        script: impl Fn(&Asked) -> Vec<Do> + Send + Sync + 'static,
    ) -> H2Upstream {
        let address = listener.local_addr().unwrap();
        let ledger = Arc::new(Ledger::default());
        let script: (When, Arc<Script>) = (when, Arc::new(script));
        let server = {
            let ledger = ledger.clone();
            tokio::spawn(async move {
                let mut clients = JoinSet::new();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    stream.set_nodelay(true).unwrap();
                    let (ledger, script) = (ledger.clone(), script.clone());
                    let (builder, tls) = (builder.clone(), tls.clone());
                    clients.spawn(async move {
                        ledger.connections.fetch_add(1, Ordering::SeqCst);
                        let _open = Open::one_of(&ledger, |ledger| &ledger.open_connections);
                        match tls {
                            None => serve(stream, builder, script, &ledger).await,
                            Some(tls) => {
                                if let Ok(stream) = tls.accept(stream).await {
                                    serve(stream, builder, script, &ledger).await;
                                }
                            }
                        }
                    });
                }
            })
        };
        H2Upstream {
            address,
            ledger,
            server,
        }
    }

    /// Answers every request with this status, and with `name` as its body.
    pub async fn named(name: &'static str, status: u16) -> H2Upstream {
        H2Upstream::start(move |_| answers(status, &[], name)).await
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Every request so far whose head and body came in whole.
    pub fn seen(&self) -> Vec<Asked> {
        self.ledger.seen.lock().unwrap().clone()
    }

    /// The only request so far.
    #[track_caller]
    pub fn only(&self) -> Asked {
        let seen = self.seen();
        assert_eq!(seen.len(), 1, "{seen:#?}");
        seen.into_iter().next().unwrap()
    }

    pub fn count(&self) -> usize {
        self.ledger.seen.lock().unwrap().len()
    }

    /// Every request so far of which there was a head.
    pub fn heads(&self) -> Vec<Asked> {
        self.ledger.heads.lock().unwrap().clone()
    }

    /// How many heads came in, and how many streams are open now and were open at most.
    pub fn streams(&self) -> (usize, usize, usize) {
        (
            self.ledger.heads.lock().unwrap().len(),
            self.ledger.open.load(Ordering::SeqCst),
            self.ledger.most_open.load(Ordering::SeqCst),
        )
    }

    /// With what streams were reset by the other side.
    pub fn resets(&self) -> Vec<Reason> {
        self.ledger.resets.lock().unwrap().clone()
    }

    /// How many connections were made, and how many are open.
    pub fn connections(&self) -> (usize, usize) {
        (
            self.ledger.connections.load(Ordering::SeqCst),
            self.ledger.open_connections.load(Ordering::SeqCst),
        )
    }

    /// Ends it: it closes its connections and takes no more.
    pub fn stop(&self) {
        self.server.abort();
    }
}

impl Drop for H2Upstream {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Counts itself for as long as it lives.
struct Open {
    ledger: Arc<Ledger>,
    counter: fn(&Ledger) -> &AtomicUsize,
}

impl Open {
    fn one_of(ledger: &Arc<Ledger>, counter: fn(&Ledger) -> &AtomicUsize) -> Open {
        counter(ledger).fetch_add(1, Ordering::SeqCst);
        Open {
            ledger: ledger.clone(),
            counter,
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        (self.counter)(&self.ledger).fetch_sub(1, Ordering::SeqCst);
    }
}

/// What a stream asks its connection to do.
enum Order {
    GoAway,
    Abort(Reason),
    Drop,
}

async fn serve<T: AsyncRead + AsyncWrite + Unpin>(
    stream: T,
    builder: server::Builder,
    script: (When, Arc<Script>),
    ledger: &Arc<Ledger>,
) {
    let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else {
        return;
    };
    let (orders, mut ordered) = mpsc::unbounded_channel();
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            accepted = connection.accept() => {
                let Some(Ok((request, respond))) = accepted else {
                    // Let those that are told of it by an error note it.
                    while streams.join_next().await.is_some() {}
                    return;
                };
                let (head, body) = request.into_parts();
                let asked = Asked::new(&head);
                ledger.heads.lock().unwrap().push(asked.clone());
                let open = Open::one_of(ledger, |ledger| &ledger.open);
                let now = ledger.open.load(Ordering::SeqCst);
                ledger.most_open.fetch_max(now, Ordering::SeqCst);
                let ((when, script), ledger) = (script.clone(), ledger.clone());
                let orders = orders.clone();
                streams.spawn(async move {
                    let _open = open;
                    let stream = Stream { asked, body, respond, sending: None };
                    if let Err(error) = stream.play(when, &*script, &ledger, &orders).await
                        && let Some(reason) = error.reason()
                        && !error.is_go_away()
                    {
                        ledger.resets.lock().unwrap().push(reason);
                    }
                });
            }
            order = ordered.recv() => match order.expect("there is a sender here") {
                Order::GoAway => connection.graceful_shutdown(),
                Order::Abort(reason) => connection.abrupt_shutdown(reason),
                Order::Drop => return,
            }
        }
    }
}

struct Stream {
    asked: Asked,
    body: RecvStream,
    respond: server::SendResponse<Bytes>,
    sending: Option<SendStream<Bytes>>,
}

impl Stream {
    async fn play(
        mut self,
        when: When,
        script: &Script,
        ledger: &Ledger,
        orders: &mpsc::UnboundedSender<Order>,
    ) -> Result<(), h2::Error> {
        if let When::Whole = when {
            self.read(ledger).await?;
        }
        for step in script(&self.asked) {
            match step {
                Do::Hint(status, headers) => {
                    let head = head(status, headers);
                    self.respond.send_informational(head)?;
                }
                Do::Head(status, headers) => {
                    let head = head(status, headers);
                    self.sending = Some(self.respond.send_response(head, false)?);
                }
                Do::Whole(status, headers) => {
                    let head = head(status, headers);
                    self.sending = Some(self.respond.send_response(head, true)?);
                }
                Do::Data(bytes) => send(self.sending(), bytes.into()).await?,
                Do::End => self.sending().send_data(Bytes::new(), true)?,
                Do::Trailers(trailers) => self.sending().send_trailers(trailers)?,
                Do::Reset(reason) => {
                    match &mut self.sending {
                        Some(sending) => sending.send_reset(reason),
                        None => self.respond.send_reset(reason),
                    }
                    return Ok(());
                }
                Do::Read => self.read(ledger).await?,
                Do::Echo => {
                    while let Some(bytes) = self.body.data().await {
                        let bytes = bytes?;
                        self.body.flow_control().release_capacity(bytes.len())?;
                        self.asked.body.extend_from_slice(&bytes);
                        let sending = self.sending.as_mut().expect("a head before data");
                        send(sending, bytes).await?;
                    }
                    self.asked.trailers = self.body.trailers().await?.unwrap_or_default();
                    ledger.seen.lock().unwrap().push(self.asked.clone());
                    self.sending().send_data(Bytes::new(), true)?;
                }
                Do::GoAway => drop(orders.send(Order::GoAway)),
                Do::Abort(reason) => {
                    drop(orders.send(Order::Abort(reason)));
                    self.hang().await?;
                }
                Do::Drop => {
                    drop(orders.send(Order::Drop));
                    self.hang().await?;
                }
                Do::Pause(time) => tokio::time::sleep(time).await,
                Do::Wait(gate) => tokio::select! {
                    () = gate.passed() => {}
                    hung = self.hang() => hung?,
                },
                Do::Hang => self.hang().await?,
            }
        }
        Ok(())
    }

    fn sending(&mut self) -> &mut SendStream<Bytes> {
        self.sending.as_mut().expect("a head before data")
    }

    async fn read(&mut self, ledger: &Ledger) -> Result<(), h2::Error> {
        (self.asked.body, self.asked.trailers) = read(&mut self.body).await?;
        ledger.seen.lock().unwrap().push(self.asked.clone());
        Ok(())
    }

    /// Until the other side resets the stream.
    async fn hang(&mut self) -> Result<(), h2::Error> {
        let reset = poll_fn(|cx| match &mut self.sending {
            Some(sending) => sending.poll_reset(cx),
            None => self.respond.poll_reset(cx),
        });
        Err(reset.await?.into())
    }
}

fn head(status: u16, headers: HeaderMap) -> Response<()> {
    let mut head = Response::new(());
    *head.status_mut() = StatusCode::from_u16(status).unwrap();
    *head.headers_mut() = headers;
    head
}

/// Sends as the window allows.
pub async fn send(stream: &mut SendStream<Bytes>, mut bytes: Bytes) -> Result<(), h2::Error> {
    while !bytes.is_empty() {
        stream.reserve_capacity(bytes.len());
        let granted = poll_fn(|cx| stream.poll_capacity(cx)).await;
        let granted = granted.ok_or(h2::Error::from(Reason::STREAM_CLOSED))??;
        stream.send_data(bytes.split_to(granted.min(bytes.len())), false)?;
    }
    Ok(())
}

/// Reads a body to its end, with its trailers.
pub async fn read(body: &mut RecvStream) -> Result<(Vec<u8>, HeaderMap), h2::Error> {
    let mut bytes = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        body.flow_control().release_capacity(piece.len())?;
        bytes.extend_from_slice(&piece);
    }
    Ok((bytes, body.trailers().await?.unwrap_or_default()))
}

/// What a client got.
#[derive(Debug)]
pub struct Got {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: HeaderMap,
    /// Heads before the final one.
    pub informational: Vec<Response<()>>,
    /// Why it is not whole.
    pub error: Option<h2::Error>,
}

impl Got {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A client with one connection, which ends with this value.
pub struct H2Client {
    pub sender: client::SendRequest<Bytes>,
    connection: JoinHandle<Result<(), h2::Error>>,
}

impl H2Client {
    /// By prior knowledge.
    pub async fn connect(address: SocketAddr) -> H2Client {
        let stream = soon(TcpStream::connect(address)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        H2Client::over(stream, &client::Builder::new()).await
    }

    pub async fn over<T>(stream: T, builder: &client::Builder) -> H2Client
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = soon(builder.handshake(stream)).await.unwrap();
        H2Client {
            sender,
            connection: tokio::spawn(connection),
        }
    }

    /// Begins a request.
    pub async fn begin(
        &mut self,
        request: Request<()>,
        ends: bool,
    ) -> Result<(client::ResponseFuture, SendStream<Bytes>), h2::Error> {
        let mut sender = soon(self.sender.clone().ready()).await?;
        sender.send_request(request, ends)
    }

    /// A request with a body, and with trailers where there are some.
    pub async fn ask(&mut self, request: Request<()>, body: &[u8], trailers: HeaderMap) -> Got {
        let ends = body.is_empty() && trailers.is_empty();
        let (response, mut sending) = match self.begin(request, ends).await {
            Ok(begun) => begun,
            Err(error) => return nothing(error),
        };
        let body = Bytes::copy_from_slice(body);
        let upload = async move {
            if ends {
                return Ok(());
            }
            send(&mut sending, body).await?;
            match trailers.is_empty() {
                true => sending.send_data(Bytes::new(), true),
                false => sending.send_trailers(trailers),
            }
        };
        // An answer may come before the end of the upload, and instead of it.
        let (_sent, got) = soon(async { tokio::join!(upload, receive(response)) }).await;
        got
    }

    pub async fn get(&mut self, path: &str, headers: Pairs<'_>) -> Got {
        self.ask(asks("GET", path, headers), b"", HeaderMap::new())
            .await
    }

    pub async fn post(&mut self, path: &str, headers: Pairs<'_>, body: &[u8]) -> Got {
        self.ask(asks("POST", path, headers), body, HeaderMap::new())
            .await
    }

    /// Waits for the end of the connection.
    pub async fn ended(&mut self) -> Result<(), h2::Error> {
        soon(&mut self.connection).await.unwrap()
    }
}

impl Drop for H2Client {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// A request to `client.example`.
pub fn asks(method: &str, path: &str, headers: Pairs) -> Request<()> {
    let mut request = Request::builder()
        .method(method)
        .uri(format!("http://client.example{path}"))
        .version(http::Version::HTTP_2)
        .body(())
        .unwrap();
    *request.headers_mut() = fields(headers);
    request
}

fn nothing(error: h2::Error) -> Got {
    Got {
        status: 0,
        headers: HeaderMap::new(),
        body: Vec::new(),
        trailers: HeaderMap::new(),
        informational: Vec::new(),
        error: Some(error),
    }
}

enum Next {
    Hint(Response<()>),
    Head(Response<RecvStream>),
}

/// All of a response, as far as it comes.
pub async fn receive(mut response: client::ResponseFuture) -> Got {
    let mut informational = Vec::new();
    let head = loop {
        let next = poll_fn(|cx| match response.poll_informational(cx) {
            Poll::Ready(Some(hint)) => Poll::Ready(hint.map(Next::Hint)),
            Poll::Ready(None) | Poll::Pending => {
                Pin::new(&mut response).poll(cx).map_ok(Next::Head)
            }
        });
        match next.await {
            Ok(Next::Hint(hint)) => informational.push(hint),
            Ok(Next::Head(head)) => break head,
            Err(error) => {
                return Got {
                    informational,
                    ..nothing(error)
                };
            }
        }
    };
    let (head, mut body) = head.into_parts();
    let mut got = Got {
        status: head.status.as_u16(),
        headers: head.headers,
        body: Vec::new(),
        trailers: HeaderMap::new(),
        informational,
        error: None,
    };
    while let Some(piece) = body.data().await {
        match piece {
            Ok(piece) => {
                let _gone = body.flow_control().release_capacity(piece.len());
                got.body.extend_from_slice(&piece);
            }
            Err(error) => {
                got.error = Some(error);
                return got;
            }
        }
    }
    match body.trailers().await {
        Ok(trailers) => got.trailers = trailers.unwrap_or_default(),
        Err(error) => got.error = Some(error),
    }
    got
}
