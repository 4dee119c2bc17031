//! Clients: each does one thing after the other, drawn by the seed, at a rate that leaves the machine room.

mod http1;
mod http2;
mod rude;
mod tls;

use std::{
    cell::{Cell, RefCell},
    future::Future,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use canary_router::policy::Target;
use fastrand::Rng;
use rustls::ClientConfig;
use tokio::time::{sleep, timeout};

use super::{
    World,
    books::{Asked, By, End, Sort},
    pattern::{Author, Pattern, mix},
    service::{How, Order},
    wire::{Head, bad},
};

/// How long nothing may happen: far more than any timeout of the router's.
const PATIENCE: Duration = Duration::from_secs(15);

/// What `fallback.static` says, in all configurations that have one.
pub const FIXED: &str = "the soak's static answer";

/// Somebody who uses the service.
pub struct Visitor {
    world: Rc<World>,
    address: SocketAddr,
    random: RefCell<Rng>,
    name: u64,
    /// How it speaks TLS, if it does.
    tls: Option<Arc<ClientConfig>>,
    /// What the router had it keep.
    cookie: RefCell<Option<String>>,
    /// There is no router any more.
    is_sent_away: Cell<bool>,
}

/// A request that is to be made.
struct Request {
    id: u64,
    method: &'static str,
    scheme: &'static str,
    path: String,
    fields: Vec<(&'static str, String)>,
    sends: u64,
}

/// What came of a request.
enum Got {
    Whole { status: u16, length: u64, by: By },
    Cut { status: u16, why: String },
    Nothing,
    Wrong(String),
}

impl Visitor {
    /// Visits until the world closes, with so long between two requests on average.
    pub async fn visit(world: Rc<World>, address: SocketAddr, name: u64, pause: Duration) {
        let mut visitor = Visitor {
            random: RefCell::new(Rng::with_seed(mix(world.seed ^ mix(name)))),
            world,
            address,
            name,
            tls: None,
            cookie: RefCell::default(),
            is_sent_away: Cell::new(false),
        };
        match visitor.offer() {
            Ok(offer) => visitor.tls = offer,
            Err(error) => {
                let mut books = visitor.world.books.borrow_mut();
                books.problem(format!("a client without TLS: {error:#}"));
            }
        }
        match visitor.is_by_http2() {
            true => Rc::new(visitor).by_http2(pause).await,
            false => Rc::new(visitor).by_http1(pause).await,
        }
    }

    fn is_by_http2(&self) -> bool {
        self.name.is_multiple_of(4)
    }

    fn draw<T>(&self, by: impl FnOnce(&mut Rng) -> T) -> T {
        by(&mut self.random.borrow_mut())
    }

    fn percent(&self) -> u8 {
        self.draw(|random| random.u8(..100))
    }

    /// Until the next request; whether there is to be one.
    async fn rest(&self, pause: Duration) -> bool {
        let much = self.draw(|random| -random.f64().max(1e-9).ln());
        sleep(pause.mul_f64(much.min(5.0))).await;
        self.world.is_open.get() && !self.is_sent_away.get()
    }

    /// How long bodies are: most of them short, some longer than any buffer.
    fn some_length(&self) -> u64 {
        match self.percent() {
            0..10 => 0,
            10..75 => self.draw(|random| random.u64(1..4 << 10)),
            75..93 => self.draw(|random| random.u64(4 << 10..100 << 10)),
            93..98 => self.draw(|random| random.u64(100 << 10..600 << 10)),
            _ => self.draw(|random| random.u64(600 << 10..4 << 20)),
        }
    }

    /// A request that asks for `length` bytes in return and sends `sends`.
    fn request(
        &self,
        sort: Sort,
        method: &'static str,
        (status, length, how): (u16, u64, How),
        sends: u64,
    ) -> Request {
        let forced = match self.percent() {
            0..4 => Some(Target::Canary),
            4..8 => Some(Target::Main),
            _ => None,
        };
        let is_keyed = method == "POST" && self.percent() < 30;
        // A CONNECT of RFC 8441 is the GET of a handshake.
        let idempotent = ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "CONNECT"].contains(&method);
        let asked = Asked {
            sort,
            method,
            sends,
            may_be_repeated: idempotent || is_keyed,
            forced,
            is_slow: false,
            user: self.name % 7,
        };
        let user = asked.user;
        let id = self.world.books.borrow_mut().begin(asked);
        let mut fields = vec![
            ("x-request-id", format!("soak-{id}")),
            ("x-user", user.to_string()),
        ];
        if let Some(target) = forced {
            let word = (target == Target::Canary).to_string();
            fields.push(("x-canary", word));
        }
        if is_keyed {
            fields.push(("idempotency-key", id.to_string()));
        }
        if let Some(cookie) = &*self.cookie.borrow() {
            fields.push(("cookie", cookie.clone()));
        }
        let order = Order {
            id,
            status,
            length,
            how,
        };
        Request {
            id,
            method,
            scheme: match self.tls {
                Some(_) => "https",
                None => "http",
            },
            path: order.path(),
            fields,
            sends,
        }
    }

    /// A request of the usual kind.
    fn usual(&self, sort: Sort) -> Request {
        let (method, has_body) = match self.percent() {
            0..50 => ("GET", false),
            50..56 => ("HEAD", false),
            56..60 => ("OPTIONS", false),
            60..64 => ("DELETE", false),
            64..86 => ("POST", true),
            86..95 => ("PUT", true),
            _ => ("PATCH", true),
        };
        let status = match self.percent() {
            0..88 => 200,
            88..91 => 201,
            91..93 => 204,
            93..95 => 302,
            95 => 304,
            _ => 404,
        };
        let how = match self.percent() {
            0..60 => How::Length,
            60..97 => How::Chunks,
            _ => How::Close,
        };
        let sends = if has_body { self.some_length() } else { 0 };
        let order = (status, self.some_length(), how);
        self.request(sort, method, order, sends)
    }

    /// It is slow, and the router may say so.
    fn mark_slow(&self, id: u64) {
        self.world.books.borrow_mut().mark_slow(id);
    }

    fn end(&self, id: u64, end: End) {
        self.world.books.borrow_mut().end(id, end);
    }

    /// Awaits what becomes of a request, for as long as anybody would.
    async fn patiently<F: Future<Output = End>>(&self, id: u64, end: F) {
        let end = timeout(PATIENCE, end).await.unwrap_or(End::Hung);
        self.end(id, end);
    }

    /// Keeps what it is told to.
    fn keep(&self, set_cookie: Option<&str>) {
        if let Some(cookie) = set_cookie.and_then(|set| set.split(';').next()) {
            *self.cookie.borrow_mut() = Some(cookie.to_owned());
        }
    }

    fn not_sent(&self, why: &std::io::Error) -> End {
        self.is_sent_away.set(true);
        End::NotSent {
            is_right: self.world.is_ending.get(),
            why: why.to_string(),
        }
    }
}

/// The content of an answer, and whose it is.
struct Content {
    id: u64,
    from: Option<(By, Pattern)>,
    /// Of an answer that is no service's.
    text: Vec<u8>,
    length: u64,
}

impl Content {
    /// Of an answer that says this of itself.
    fn new(id: u64, from: Option<&str>, said: Option<&str>) -> Result<Content, String> {
        let from = match from {
            Some("main") => Some((By::Main, Pattern::new(id, Author::Main))),
            Some("canary") => Some((By::Canary, Pattern::new(id, Author::Canary))),
            Some(other) => return Err(format!("an answer of {other}")),
            None => None,
        };
        if from.is_some() && said != Some(&id.to_string()) {
            return Err(format!("the answer to {said:?}"));
        }
        Ok(Content {
            id,
            from,
            text: Vec::new(),
            length: 0,
        })
    }

    /// The service sends back what it gets.
    fn echoes(mut self) -> Content {
        if let Some((_, pattern)) = &mut self.from {
            *pattern = Pattern::new(self.id, Author::Client);
        }
        self
    }

    fn read(&mut self, piece: &[u8]) {
        self.length += piece.len() as u64;
        match &mut self.from {
            Some((_, pattern)) => pattern.read(piece),
            None if self.text.len() < 1000 => self.text.extend_from_slice(piece),
            None => {}
        }
    }

    /// All of it has come.
    fn ended(self, status: u16) -> Got {
        let length = self.length;
        let by = match &self.from {
            Some((by, pattern)) if pattern.is_right() => *by,
            Some(_) => return Got::Wrong("another body than the service has sent".into()),
            None if self.text == FIXED.as_bytes() => By::Fixed,
            None if self.text.starts_with(b"canary-router: ") => By::Router,
            // To HEAD, or the last word of a connection.
            None if self.text.is_empty() => By::Router,
            None => {
                let text = String::from_utf8_lossy(&self.text);
                return Got::Wrong(format!("{status} by nobody: {text:?}"));
            }
        };
        Got::Whole { status, length, by }
    }

    /// No more of it comes.
    fn cut(self, status: u16, why: impl ToString) -> Got {
        match self.from {
            Some((_, pattern)) if !pattern.is_right() => {
                Got::Wrong("another body than the service has sent, and not all of it".into())
            }
            _ => Got::Cut {
                status,
                why: format!("after {} bytes: {}", self.length, why.to_string()),
            },
        }
    }
}

impl Got {
    fn end(self, may_be_untaken: bool) -> End {
        match self {
            Got::Whole { status, length, by } => End::Whole { status, length, by },
            Got::Cut { status, why } => End::Cut { status, why },
            Got::Nothing => End::NoAnswer { may_be_untaken },
            Got::Wrong(why) => End::Wrong(why),
        }
    }
}

/// A head that was answered to this request.
fn content(id: u64, head: &Head) -> Result<Content, String> {
    Content::new(id, head.field("x-from"), head.field("x-id"))
}

fn wrong(error: &std::io::Error) -> Option<Got> {
    let is_wrong = error.kind() == bad("").kind();
    is_wrong.then(|| Got::Wrong(format!("what is no HTTP: {error}")))
}
