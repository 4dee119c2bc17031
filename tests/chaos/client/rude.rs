//! Clients that leave, dawdle, and send what is no request.

use std::time::Duration;

use tokio::{
    io::AsyncReadExt,
    time::{sleep, timeout},
};

use super::{
    super::{
        books::{End, Sort},
        pattern::{Author, Pattern},
        service::How,
        stream::WriteEnd,
        wire::Head,
    },
    PATIENCE, Visitor,
    http1::{Connection, Manner, head},
};

/// What is refused, and with what.
const BAD: [(&str, &[u16]); 9] = [
    ("GET / HTTP/1.1\r\n\r\n", &[400]),
    ("GET /a b HTTP/1.1\r\nhost: a\r\n\r\n", &[400]),
    ("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", &[400]),
    ("GET / HTTP/3.0\r\nhost: a\r\n\r\n", &[400, 505]),
    ("TRACE / HTTP/1.1\r\nhost: a\r\n\r\n", &[405]),
    ("CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n", &[405]),
    (
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\nabc",
        &[400],
    ),
    (
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
        &[400, 501],
    ),
    ("GET / HTTP/1.1\r\nhost: a\r\nna me: x\r\n\r\n", &[400]),
];

impl Visitor {
    /// Something that one does not do; `percent` is from 86 up.
    pub async fn be_rude(&self, percent: u8) {
        if self.tls.is_some() && self.percent() < 25 {
            return self.be_rude_in_the_handshake().await;
        }
        match percent {
            86 => self.say_nonsense().await,
            87 => self.say_too_much().await,
            88 => self.ask_for_health().await,
            89 => self.leave_in_the_head().await,
            90 => self.stall_in_the_head().await,
            91 => self.stall_in_the_body().await,
            92 => self.read_nothing().await,
            93..95 => self.leave_in_the_body().await,
            95..97 => self.leave_at_once().await,
            _ => self.leave_in_the_answer().await,
        }
    }

    async fn say_nonsense(&self) {
        let (text, statuses) = BAD[self.draw(|random| random.usize(..BAD.len()))];
        self.nameless(text.as_bytes(), statuses).await;
    }

    async fn say_too_much(&self) {
        let long = "x".repeat(300 << 10);
        match self.percent() % 2 {
            0 => {
                let text = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {long}\r\n\r\n");
                self.nameless(text.as_bytes(), &[431]).await;
            }
            _ => {
                let text = format!("GET /{long} HTTP/1.1\r\nhost: a\r\n\r\n");
                self.nameless(text.as_bytes(), &[414]).await;
            }
        }
    }

    async fn ask_for_health(&self) {
        let text = "GET /application/health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        self.nameless(text.as_bytes(), &[200]).await;
    }

    /// Sends what the router answers by itself, and expects one of these statuses.
    async fn nameless(&self, text: &[u8], statuses: &[u16]) {
        let Ok(mut connection) = Connection::open(self).await else {
            return;
        };
        self.world.books.borrow_mut().nameless.0 += 1;
        let answered = timeout(PATIENCE, async {
            let _or_it_has_answered = connection.write.send(text).await;
            Head::read(&mut connection.reader).await
        });
        let status = match answered.await {
            Ok(Ok(Some(head))) => head.status().ok(),
            _ => None,
        };
        if !status.is_some_and(|status| statuses.contains(&status)) {
            let text = String::from_utf8_lossy(&text[..text.len().min(80)]).into_owned();
            let mut books = self.world.books.borrow_mut();
            books.problem(format!("{status:?} instead of {statuses:?} for {text:?}"));
        }
        connection.end(self.percent() < 50);
    }

    async fn leave_in_the_head(&self) {
        if let Ok(mut connection) = Connection::open(self).await {
            let _gone = connection.write.send(b"GET /half HTTP/1.1\r\nho").await;
            self.wait_a_bit().await;
            connection.end(self.percent() < 50);
        }
    }

    async fn stall_in_the_head(&self) {
        self.nameless(b"GET /half HTTP/1.1\r\nho", &[408]).await;
    }

    async fn stall_in_the_body(&self) {
        let order = (200, 10, How::Length);
        let request = self.request(Sort::Http1, "POST", order, 5000);
        self.mark_slow(request.id);
        let mut connection = match Connection::open(self).await {
            Ok(connection) => connection,
            Err(error) => return self.end(request.id, self.not_sent(&error)),
        };
        self.patiently(request.id, async {
            let mut text = head(&request, Manner::default()).into_bytes();
            text.extend(Pattern::new(request.id, Author::Client).next(2500));
            let _or_it_has_answered = connection.write.send(&text).await;
            let got = self.read(&mut connection.reader, &request, Manner::default());
            got.await.0.end(false)
        })
        .await;
    }

    async fn read_nothing(&self) {
        let order = (200, 8 << 20, How::Length);
        let request = self.request(Sort::Http1, "GET", order, 0);
        self.mark_slow(request.id);
        let mut connection = match Connection::narrow(self).await {
            Ok(connection) => connection,
            Err(error) => return self.end(request.id, self.not_sent(&error)),
        };
        let text = head(&request, Manner::default());
        let _gone = connection.write.send(text.as_bytes()).await;
        // Longer than the router waits for it.
        sleep(Duration::from_millis(4500)).await;
        self.end(request.id, End::Left);
    }

    async fn leave_in_the_body(&self) {
        let sends = self.draw(|random| random.u64(2..300 << 10));
        let order = (200, 10, How::Length);
        let request = self.request(Sort::Http1, "POST", order, sends);
        let mut connection = match Connection::open(self).await {
            Ok(connection) => connection,
            Err(error) => return self.end(request.id, self.not_sent(&error)),
        };
        let mut text = head(&request, Manner::default()).into_bytes();
        text.extend(Pattern::new(request.id, Author::Client).next(sends as usize / 2));
        let _gone = timeout(PATIENCE, connection.write.send(&text)).await;
        self.wait_a_bit().await;
        connection.end(self.percent() < 50);
        self.end(request.id, End::Left);
    }

    async fn leave_at_once(&self) {
        let request = self.request(Sort::Http1, "GET", (200, 1000, How::Length), 0);
        let mut connection = match Connection::open(self).await {
            Ok(connection) => connection,
            Err(error) => return self.end(request.id, self.not_sent(&error)),
        };
        let text = head(&request, Manner::default());
        let _gone = connection.write.send(text.as_bytes()).await;
        self.wait_a_bit().await;
        connection.end(self.percent() < 50);
        self.end(request.id, End::Left);
    }

    async fn leave_in_the_answer(&self) {
        let length = self.draw(|random| random.u64(100 << 10..2 << 20));
        let order = (200, length, How::Chunks);
        let request = self.request(Sort::Http1, "GET", order, 0);
        let mut connection = match Connection::open(self).await {
            Ok(connection) => connection,
            Err(error) => return self.end(request.id, self.not_sent(&error)),
        };
        let text = head(&request, Manner::default());
        let _gone = connection.write.send(text.as_bytes()).await;
        let mut some = vec![0; 50 << 10];
        let _or_less = timeout(PATIENCE, connection.reader.read(&mut some)).await;
        self.wait_a_bit().await;
        connection.end(self.percent() < 50);
        self.end(request.id, End::Left);
    }

    /// Ends a connection, this way or that.
    pub(super) fn leave(&self, write: WriteEnd) {
        if self.percent() < 50 {
            let _closed_already = write.resets();
        }
    }

    pub(super) async fn wait_a_bit(&self) {
        let much = self.draw(|random| random.u64(..50));
        sleep(Duration::from_millis(much)).await;
    }
}
