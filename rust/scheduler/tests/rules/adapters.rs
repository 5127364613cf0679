//! Held requests, distinct adapters at once, and the pool and names of adapters.

use octavo_scheduler::{
    AdapterNames, AdapterPool, EndReason, Event, Grant, NameError, NewRequest, SchedulerConfig,
};

use super::harness::{CONFIG, Harness, request};

#[test]
fn a_held_request_waits_for_its_release_and_keeps_its_place() {
    let mut h = Harness::new(SchedulerConfig { max_num_seqs: 1, max_queue: 3, ..CONFIG });
    let held = NewRequest { held: true, adapter: 0, ..request(1, 4, 2) };
    h.submit([held, request(2, 4, 2), request(3, 4, 2)]);
    assert_eq!((h.batch(), h.scheduler.stats().waiting), (vec![(2, 0, 4)], 2));
    h.step(vec![Event::Release { request: 1 }]);
    let started: Vec<u64> = h.run().iter().map(|end| end.0).collect();
    assert_eq!(started, [2, 1, 3], "it came before request 3");
}

#[test]
fn a_held_request_ends_by_a_failure_a_cancellation_and_its_deadline() {
    let mut h = Harness::new(CONFIG);
    let held = |id| NewRequest { held: true, adapter: 0, deadline_us: Some(9), ..request(id, 4, 2) };
    assert!(h.submit([held(1), held(2), held(3)]).plan.is_empty());
    let events = vec![Event::Fail { request: 1 }, Event::Cancel { request: 2 }, Event::Fail { request: 8 }];
    let ends = |h: &Harness| h.actions.finished.iter().map(|f| (f.request, f.reason)).collect::<Vec<_>>();
    h.step(events);
    assert_eq!(ends(&h), [(1, EndReason::Error), (2, EndReason::Abort)]);
    h.now_us = 9;
    h.step(vec![Event::Release { request: 2 }]);
    assert_eq!(ends(&h), [(3, EndReason::Timeout)]);
    assert!(h.scheduler.is_idle());
}

#[test]
fn a_further_adapter_waits_and_requests_without_one_do_not() {
    let mut h = Harness::new(SchedulerConfig { max_adapters: 2, ..CONFIG });
    let with = |id, adapter| NewRequest { adapter, ..request(id, 4, 3) };
    h.submit([with(1, 5), with(2, 6), with(3, 7), with(4, 6), request(5, 4, 3)]);
    assert_eq!(h.batch().iter().map(|seq| seq.0).collect::<Vec<_>>(), [1, 2, 4, 5]);
    assert_eq!(h.run().len(), 5);
}

#[test]
fn the_pool_evicts_what_was_used_least_recently_and_nothing_pinned() {
    let mut pool = AdapterPool::new(10);
    let mut pack = |request, id, bytes| {
        pool.wait((0, request), id, bytes);
        let grant = pool.next_grant();
        if let Some(Grant::Pack { id, .. }) = grant {
            pool.packed(id);
            assert_eq!(pool.next_grant(), Some(Grant::Ready { request, key: (0, request), id }));
        }
        grant.map(|grant| match grant {
            Grant::Pack { evict, .. } => evict,
            Grant::Ready { .. } => panic!("it was not in memory"),
        })
    };
    assert_eq!((pack(1, 1, 4), pack(2, 2, 4)), (Some(vec![]), Some(vec![])));
    assert_eq!(pack(3, 3, 4), None, "both are pinned");
    // The waiting request is overtaken eight times, and no more.
    let overtaken = (4..20).take_while(|&request| pool.try_pin((0, request), 1)).count();
    assert_eq!(overtaken, 8);
    for left in (0..9).rev() {
        assert_eq!(pool.unpin(1), left > 0);
    }
    assert_eq!(pool.next_grant(), Some(Grant::Pack { id: 3, key: (0, 3), evict: vec![1] }));
    assert_eq!(pool.failed(3), [(0, 3)]);
    assert_eq!((pool.bytes(), pool.is_resident(1), pool.is_resident(2)), (4, false, true));
    assert!(!pool.drop_idle(2), "it is pinned");
    pool.unpin(2);
    assert!(pool.drop_idle(2));
    pool.check_invariants();
}

#[test]
fn an_id_stands_for_one_content() {
    let mut names = AdapterNames::default();
    let mut load = |name, digest| names.load(name, digest, None).expect("a good name");
    let (a, b, again) = (load("a", "x"), load("b", "x"), load("a", "y"));
    assert_eq!((a.id == b.id, a.id == again.id, again.generation), (true, false, 2));
    assert_eq!((again.replaced, load("a", "y").generation, load("a", "x").id), (Some(a.id), 2, a.id));
    assert_eq!(names.resolve("a@3").map(|found| found.id), Ok(a.id));
    assert!(matches!(names.resolve("a@2"), Err(NameError::OtherGeneration { found: 3, .. })));
    assert!(matches!(names.load("c", "z", Some(1)), Err(NameError::Conflict { found: 0, .. })));
    names.unload("b").expect("loaded");
    assert!(names.has(a.id));
    names.unload("a").expect("loaded");
    assert!(!names.has(a.id) && names.resolve("a").is_err());
}
