# syntax=docker/dockerfile:1

# The binary and what it needs to run, nothing else: no shell, no package manager, no other program. With the C library that
# it is tested with: a static binary would be 3 MB less, and slower (docs/performance.md, "Allocator and libc").
#
#     docker build -t canary-router .
#     docker buildx build --platform linux/amd64,linux/arm64 -t canary-router .     # both, on a machine of either kind

FROM --platform=$BUILDPLATFORM rust:1.95-slim-bookworm AS build
ARG TARGETARCH
WORKDIR /src
COPY packaging/image packaging/image
RUN packaging/image tools
COPY . .
# What --version says beside the version: there is no git here.
ARG CANARY_BUILD_COMMIT
RUN packaging/image root /image

FROM scratch
COPY --from=build /image /
# A volume belongs to whom its folder here belongs to.
COPY --from=build --chown=10001:10001 /image/var/lib/canary-router /var/lib/canary-router
ENV PATH=/usr/local/bin
USER 10001:10001
EXPOSE 1345 8888
# It asks the instrumentation port: for another one than 8888, set CANARY_ROUTER_URL.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 \
    CMD ["/usr/local/bin/canary-router", "status"]
# No shell between: SIGTERM reaches the router, which drains.
STOPSIGNAL SIGTERM
# Its config.json is taken where there is one, and the environment alone where there is none.
WORKDIR /etc/canary-router
ENTRYPOINT ["/usr/local/bin/canary-router"]
