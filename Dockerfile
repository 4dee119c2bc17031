# syntax=docker/dockerfile:1

FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
# ring and uapi compile a little C.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY Cargo.toml Cargo.lock ./
COPY src ./src
COPY sample ./sample
COPY tests ./tests
COPY benches ./benches
RUN cargo build --release --locked --bin canary-router \
    && strip target/release/canary-router

FROM debian:bookworm-slim
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 canary-router \
    && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin canary-router \
    && install --directory --owner=10001 --group=10001 /var/lib/canary-router
COPY --from=build /src/target/release/canary-router /usr/local/bin/canary-router
USER 10001:10001
ENV HEALTHCHECK_PORT=1345
EXPOSE 1345 8888
# The image has no HTTP client but its shell.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 \
    CMD ["/bin/bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/$HEALTHCHECK_PORT && printf 'GET /application/health HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n' >&3 && read -r line <&3 && [[ $line == *' 200 '* ]]"]
# No shell between: SIGTERM reaches the router, which drains.
STOPSIGNAL SIGTERM
# Its config.json is taken where there is one, and the environment alone where there is none.
WORKDIR /etc/canary-router
ENTRYPOINT ["/usr/local/bin/canary-router"]
