//! The instrumentation port: dashboard, metrics, health, status, and what an operator can change.

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{
        ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY,
        WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
    },
};
use http_body_util::{
    BodyExt, Full, LengthLimitError, Limited, StreamBody, combinators::UnsyncBoxBody,
};
use hyper::body::{Body, Incoming};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tracing::info;

use super::{
    Control,
    analyst::Analyst,
    dashboard::PAGE,
    events::{Events, Now},
    guard::{Forbidden, Guard},
    history::Row,
    metrics::Exposition,
    minute::{Minute, Second},
    readiness::Readiness,
    reload::{Refused as ReloadRefused, Reloader},
    status,
    weights::{Form, Problem},
};
use crate::{
    clock,
    policy::{
        Target, Weight,
        rollout::{Command, Phase, Refused},
    },
    state::{Durability, Published, Reloads, SharedProgress},
};

/// The largest body of a request.
const MAX_BODY: usize = 64 << 10;
/// How long a body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an answer waits until what was changed is on disk.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);

/// Answers the instrumentation port's requests.
pub struct Admin {
    exposition: Exposition,
    readiness: Readiness,
    address: Option<SocketAddr>,
    guard: RefCell<Guard>,
    published: Arc<Published>,
    reloader: Reloader,
    reloads: Arc<Reloads>,
    durability: Option<Arc<Durability>>,
    progress: Arc<SharedProgress>,
    analyst: Rc<RefCell<Analyst>>,
    minute: Rc<RefCell<Minute>>,
    events: Events,
    /// Another process decides from now on.
    frozen: Cell<bool>,
}

/// An answer.
type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// What there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    Dashboard,
    Events,
    Metrics,
    Live,
    Ready,
    Status,
    Decisions,
    Weight(Form),
    Rollout(Command),
    ResetBreakers,
    ResetLimits,
    Reload,
}

/// Where that is, and how it is asked for.
const ROUTES: [(&str, &str, Route); 17] = [
    ("GET", "/", Route::Dashboard),
    ("GET", "/events", Route::Events),
    ("GET", "/metrics", Route::Metrics),
    ("GET", "/health/live", Route::Live),
    ("GET", "/health/ready", Route::Ready),
    ("GET", "/status", Route::Status),
    ("GET", "/decisions", Route::Decisions),
    ("PUT", "/traffic/weight", Route::Weight(Form::Percent)),
    ("POST", "/api/canary/weight", Route::Weight(Form::Shares)),
    ("POST", "/rollout/start", Route::Rollout(Command::Start)),
    ("POST", "/rollout/pause", Route::Rollout(Command::Pause)),
    ("POST", "/rollout/resume", Route::Rollout(Command::Resume)),
    ("POST", "/rollout/promote", Route::Rollout(Command::Promote)),
    ("POST", "/rollout/abort", Route::Rollout(Command::Abort)),
    ("POST", "/breaker/reset", Route::ResetBreakers),
    ("POST", "/limits/reset", Route::ResetLimits),
    ("POST", "/reload", Route::Reload),
];

/// An answer that says what is wrong and what to do.
struct Error {
    status: StatusCode,
    text: String,
}

impl Error {
    fn new(status: StatusCode, text: impl Into<String>) -> Error {
        Error {
            status,
            text: text.into(),
        }
    }

    fn answer(self) -> Answer {
        json_response(self.status, &json!({"error": self.text}))
    }
}

impl Admin {
    /// # Errors
    /// The metrics cannot be registered: two of them have the same name.
    pub fn new(
        control: &Control,
        address: Option<SocketAddr>,
        analyst: Rc<RefCell<Analyst>>,
        minute: Rc<RefCell<Minute>>,
    ) -> Result<Admin, prometheus::Error> {
        Ok(Admin {
            readiness: Readiness::new(control),
            exposition: Exposition::new(control)?,
            address,
            guard: RefCell::new(guard(&control.published, address)),
            published: Arc::clone(&control.published),
            reloader: Reloader::new(
                control.load.clone(),
                control.log,
                Arc::clone(&control.published),
                Arc::clone(&control.reloads),
            ),
            reloads: Arc::clone(&control.reloads),
            durability: control.durability.clone(),
            progress: Arc::clone(&control.progress),
            analyst,
            minute,
            events: Events::default(),
            frozen: Cell::new(false),
        })
    }

    /// Answers one request.
    ///
    /// # Errors
    /// None; every request has an answer.
    pub async fn answer(&self, request: Request<Incoming>) -> Result<Answer, Infallible> {
        let path = request.uri().path();
        let Some((method, _, route)) = ROUTES.iter().find(|(_, known, _)| *known == path) else {
            let known: Vec<&str> = ROUTES.iter().map(|(_, path, _)| *path).collect();
            let text = format!("there is nothing here: see {}", known.join(", "));
            return Ok(Error::new(StatusCode::NOT_FOUND, text).answer());
        };
        let asked = request.method();
        let fits = asked.as_str() == *method || *method == "GET" && *asked == Method::HEAD;
        if !fits {
            let (allowed, text) = match *method {
                "GET" => ("GET, HEAD", "this can only be read: use GET".to_owned()),
                method => (method, format!("this changes something: use {method}")),
            };
            let mut response = Error::new(StatusCode::METHOD_NOT_ALLOWED, text).answer();
            let allowed = HeaderValue::from_static(allowed);
            response.headers_mut().insert(ALLOW, allowed);
            return Ok(response);
        }
        Ok(match route {
            Route::Dashboard => dashboard(),
            Route::Events => self.events(),
            Route::Metrics => self.metrics(),
            Route::Live => json_response(StatusCode::OK, &json!({"status": "live"})),
            Route::Ready => self.ready().await,
            Route::Status => json_response(StatusCode::OK, &self.status()),
            Route::Decisions => {
                let decisions = self.analyst.borrow().decisions().clone();
                json_response(StatusCode::OK, &json!({"decisions": decisions}))
            }
            change => match self.may_change(request.headers()) {
                Err(forbidden) => refuse(forbidden),
                Ok(()) => match self.change(*change, request.into_body()).await {
                    Ok(()) => json_response(StatusCode::OK, &self.status()),
                    Err(error) => error.answer(),
                },
            },
        })
    }

    fn may_change(&self, headers: &HeaderMap) -> Result<(), Forbidden> {
        self.guard.borrow().check(headers)
    }

    /// Leaves decisions to another process, which goes on from what is kept now.
    pub fn freeze(&self) {
        self.frozen.set(true);
        let mut analyst = self.analyst.borrow_mut();
        analyst.look(clock::uptime(), clock::wall());
        analyst.keep(clock::uptime());
    }

    /// There is no such process.
    pub fn resume(&self) {
        self.frozen.set(false);
    }

    /// It serves: who watches shall watch that one.
    pub fn leave(&self) {
        self.events.end();
    }

    /// Whether decisions are another process's.
    pub fn is_frozen(&self) -> bool {
        self.frozen.get()
    }

    /// Has the configuration read again, and waits until what follows from it is on disk. `why` is who wants it.
    ///
    /// # Errors
    /// All stays as it was.
    pub async fn reload(&self, why: &str) -> Result<(), ReloadRefused> {
        if self.is_frozen() {
            return Err(ReloadRefused::Succeeded);
        }
        let version = self.reloader.reload(why, &mut self.analyst.borrow_mut())?;
        self.guard.replace(guard(&self.published, self.address));
        self.written(version).await;
        Ok(())
    }

    /// Whether what it would read is another one than it has read last. To be asked now and then.
    pub fn have_files_changed(&self) -> bool {
        self.reloader.have_files_changed()
    }

    /// Whether a change would be one of the process that comes after this one, too.
    fn decides(&self) -> Result<(), Error> {
        match self.is_frozen() {
            false => Ok(()),
            true => {
                let text = ReloadRefused::Succeeded.to_string();
                Err(Error::new(StatusCode::CONFLICT, text))
            }
        }
    }

    async fn change(&self, route: Route, body: Incoming) -> Result<(), Error> {
        self.decides()?;
        match route {
            Route::Weight(form) => {
                let weight = read(form, body).await?;
                // It may have taken a while.
                self.decides()?;
                self.command(Command::SetWeight(weight)).await
            }
            Route::Rollout(command) => self.command(command).await,
            Route::ResetBreakers => {
                info!("an operator has closed the breakers");
                let now = clock::uptime();
                let admission = &self.published.load().admission;
                let gates = Target::ALL.map(|target| admission.gate(target));
                let gates = gates.into_iter().flatten();
                for gate in gates.chain([admission.sidecar()]) {
                    gate.with(|breaker| breaker.reset(now));
                }
                let kept = self.analyst.borrow_mut().keep(now);
                self.written(kept).await;
                Ok(())
            }
            Route::ResetLimits => {
                info!("an operator has reset the limits");
                self.published.load().admission.reset_limits();
                let kept = self.analyst.borrow_mut().keep(clock::uptime());
                self.written(kept).await;
                Ok(())
            }
            Route::Reload => self.reload("an operator").await.map_err(|refused| {
                let status = match refused {
                    ReloadRefused::Unusable(_) => StatusCode::UNPROCESSABLE_ENTITY,
                    ReloadRefused::Fixed(_) | ReloadRefused::NoFile | ReloadRefused::Succeeded => {
                        StatusCode::CONFLICT
                    }
                };
                Error::new(status, refused.to_string())
            }),
            Route::Dashboard
            | Route::Events
            | Route::Metrics
            | Route::Live
            | Route::Ready
            | Route::Status
            | Route::Decisions => Ok(()),
        }
    }

    async fn command(&self, command: Command) -> Result<(), Error> {
        let kept = {
            let mut analyst = self.analyst.borrow_mut();
            let phase = analyst.rollout().position.phase;
            analyst
                .command(command, clock::uptime(), clock::wall())
                .map_err(|refused| Error::new(StatusCode::CONFLICT, explain(refused, phase)))?
        };
        self.written(kept).await;
        Ok(())
    }

    /// Waits until this version, and everything that had changed before it, is on disk, where there is one: so that
    /// what was said survives whatever comes next.
    async fn written(&self, version: u64) {
        if self.durability.is_none() {
            return;
        }
        let written = async {
            while !self.progress.is_written(version) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        // A disk that fails has its own alarm, and takes nothing away from what is in force.
        let _late = timeout(WRITE_TIMEOUT, written).await;
    }

    fn status(&self) -> Value {
        status::status(
            &self.published.load(),
            &self.reloads,
            &self.analyst.borrow(),
            &self.minute.borrow(),
            self.readiness.state(),
        )
    }

    /// A second is over, in which the targets did that: whoever watches is told.
    pub fn second(&self, targets: [Second; Target::ALL.len()], uptime: Duration) {
        let row = {
            let analyst = self.analyst.borrow();
            Row {
                uptime,
                weight: analyst.rollout().position.weight,
                evidence: status::shown_strength(&analyst).map(|strength| strength.overall),
                targets,
            }
        };
        self.events.second(row, || self.now());
    }

    fn now(&self) -> Now {
        let wall = clock::wall().duration_since(UNIX_EPOCH);
        Now {
            wall: wall.unwrap_or_default().as_millis() as u64,
            uptime: clock::uptime().as_secs_f64(),
            status: status::in_short(self.status()),
        }
    }

    fn events(&self) -> Answer {
        let Some(events) = self.events.watch(self.guard.borrow().who(), self.now()) else {
            let text = "too many watch already: close a dashboard, or read /status now and then";
            return Error::new(StatusCode::SERVICE_UNAVAILABLE, text).answer();
        };
        let body = StreamBody::new(events).boxed_unsync();
        of_type("text/event-stream", body)
    }

    fn metrics(&self) -> Answer {
        match self.exposition.text(&self.analyst.borrow()) {
            Ok(text) => respond(StatusCode::OK, prometheus::TEXT_FORMAT, text),
            Err(failure) => {
                Error::new(StatusCode::INTERNAL_SERVER_ERROR, failure.to_string()).answer()
            }
        }
    }

    async fn ready(&self) -> Answer {
        let report = self.readiness.report().await;
        let status = match report.ready {
            true => StatusCode::OK,
            false => StatusCode::SERVICE_UNAVAILABLE,
        };
        json_response(status, &report.to_json())
    }
}

/// The weight in a request's body.
async fn read(form: Form, body: Incoming) -> Result<Weight, Error> {
    let refused = |status, why: &str| Error::new(status, format!("{why}: send {}", form.example()));
    let too_long = || {
        let why = format!("the body is longer than {MAX_BODY} bytes");
        refused(StatusCode::PAYLOAD_TOO_LARGE, &why)
    };
    // Who says so beforehand, and waits for a 100, need not send it.
    if body.size_hint().lower() > MAX_BODY as u64 {
        return Err(too_long());
    }
    let collected = timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY).collect()).await;
    let bytes = match collected {
        Ok(Ok(collected)) => collected.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(too_long()),
        Ok(Err(error)) => {
            let why = format!("the body cannot be read ({error})");
            return Err(refused(StatusCode::BAD_REQUEST, &why));
        }
        Err(_elapsed) => {
            let why = "the body did not come in time";
            return Err(refused(StatusCode::REQUEST_TIMEOUT, why));
        }
    };
    form.read(&bytes).map_err(|problem| match problem {
        Problem::NotJson(why) => refused(StatusCode::BAD_REQUEST, &why),
        Problem::Unfit(why) => refused(StatusCode::UNPROCESSABLE_ENTITY, &why),
    })
}

fn explain(refused: Refused, phase: Phase) -> String {
    let phase = phase.label();
    match refused {
        Refused::NoSteps => {
            "there are no steps: write rollout.steps into the configuration, or set the weight by \
                             hand (PUT /traffic/weight)"
                .into()
        }
        Refused::UnderWay => format!(
            "a rollout is under way already ({phase}): abort or promote it first, or resume it if it is paused"
        ),
        Refused::NotProgressing => {
            format!("no rollout is progressing (it is {phase}), so there is nothing to pause")
        }
        Refused::NotPaused => {
            format!(
                "no rollout is paused (it is {phase}), so there is nothing to resume; start one"
            )
        }
        Refused::WeightIsTheSteps => {
            "a rollout is progressing, and its steps say what the weight is: pause or abort \
                                      it first"
                .into()
        }
    }
}

fn refuse(forbidden: Forbidden) -> Answer {
    let status = forbidden.status();
    let mut response = Error::new(status, forbidden.text()).answer();
    if status == StatusCode::UNAUTHORIZED {
        // RFC 6750 section 3.
        let challenge = match forbidden {
            Forbidden::TokenWrong => r#"Bearer realm="canary-router", error="invalid_token""#,
            _ => r#"Bearer realm="canary-router""#,
        };
        let challenge = HeaderValue::from_static(challenge);
        response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    }
    response
}

/// By the configuration in force, for a port that listens at `address`.
fn guard(published: &Published, address: Option<SocketAddr>) -> Guard {
    Guard::new(published.load().config.instrumentation.as_ref(), address)
}

fn dashboard() -> Answer {
    let mut response = respond(
        StatusCode::OK,
        "text/html; charset=utf-8",
        PAGE.html.clone(),
    );
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, PAGE.policy.clone());
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

fn json_response(status: StatusCode, body: &Value) -> Answer {
    respond(status, "application/json", format!("{body}\n"))
}

fn respond(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = of_type(content_type, Full::new(body.into()).boxed_unsync());
    *response.status_mut() = status;
    response
}

fn of_type(content_type: &'static str, body: UnsyncBoxBody<Bytes, Infallible>) -> Answer {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
