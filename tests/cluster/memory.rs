//! A node that was told how much memory it may take.

use crate::common::{Cluster, run, until};
use hyper::{Method, header::RETRY_AFTER};
use serde_json::json;

#[test]
fn past_its_memory_a_node_takes_no_values_but_all_else() {
    let cluster = Cluster::start_with(&["--shards", "1"], &[("KV_MAX_MEMORY", "4MiB")]);
    let value = vec![b'v'; 100_000];
    let put = |i: u32| cluster.send(Method::PUT, &format!("/v1/kv/{i}"), &[], value.clone());
    let get = |i: u32| cluster.send(Method::GET, &format!("/v1/kv/{i}"), &[], "").status.as_u16();
    let taken = (0..100).find(|i| put(*i).status != 204).expect("4 MiB are less than 10 MB");
    assert!((30..=41).contains(&taken), "{taken} values of 100 kB");

    let refused = put(taken);
    assert_eq!((refused.status.as_u16(), refused.headers.get(RETRY_AFTER)), (507, None), "{refused:?}");
    let body = refused.json();
    assert_eq!((&body["code"], &body["outcome"]), (&json!("memory_full"), &json!("not_applied")), "{body}");
    assert!(body["detail"].as_str().is_some_and(|d| d.contains("--max-memory is 4194304")), "{body}");
    assert_eq!(get(taken), 404, "it was not applied");
    let (status, body) = cluster.put("key", &json!("value")).pair();
    assert!(status == 507 && body["status"].is_string(), "{body}");
    let told = run(&mut cluster.kv(&["status"])).1;
    assert!(told.contains(" of 4.0 MiB") && told.contains("MEMORY FULL"), "{told}");

    assert_eq!(get(0), 200);
    for i in 0..taken {
        assert_eq!(cluster.send(Method::DELETE, &format!("/v1/kv/{i}"), &[], "").status, 204);
    }
    until("values are taken again", || (put(taken).status == 204).then_some(()));
    assert_eq!(get(taken), 200);
}
