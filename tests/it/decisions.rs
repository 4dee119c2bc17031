//! Who decides: the header, the sidecar, or nobody.

use serde_json::json;

use crate::support::*;

#[tokio::test]
async fn without_header_and_sidecar_it_is_main() {
    let (main, canary) = (
        Upstream::named("main", 200).await,
        Upstream::named("canary", 200).await,
    );
    let router = Router::start(json!({"main-target": main.url(), "canary-target": canary.url()}));
    let response = get(router.address, "/", "").await;
    assert_eq!((response.status, response.text().as_str()), (200, "main"));
    assert_eq!(canary.count(), 0);
    router
        .counts(
            "canary_router_request_count{reason=\"\",target=\"main\"}",
            1.0,
        )
        .await;
}
