//! The beginning and the end of passes, step by step.

use super::*;

#[test]
fn what_a_shard_said_before_it_heard_of_a_pass_begins_none() {
    let mut live = IngestCore::new(Arc::new(Mapping::Plain), SlotTable { shards: 1 }, vec![BACKEND]);
    live.opened(0, LINEAGE, (10, 0), None);
    let mut catch_up = CatchUpCore::new(&live, HALVE_WITHIN);
    let lowest: Positions = [at((5, 0))].into_iter().collect();
    let wanted = |pass| {
        let serving = if pass > 0 { vec![(BACKEND, pass, 0)] } else { Vec::new() };
        Arc::new(CatchUpWanted { version: 0, lowest: lowest.clone(), serving })
    };
    let mut out = Vec::new();
    catch_up.wanted(ShardIndex(0), wanted(0));
    catch_up.tick(&live, Millis(1), |_| true, &mut out);
    catch_up.live_lost(0, &mut out);
    for now in 2..10 {
        catch_up.tick(&live, Millis(now), |_| true, &mut out);
    }
    assert_eq!(catch_up.counters(0).begun, 1, "the shard may not have heard of the first yet");
    catch_up.wanted(ShardIndex(0), wanted(1));
    catch_up.tick(&live, Millis(10), |_| true, &mut out);
    assert_eq!(catch_up.counters(0).begun, 2);
}

#[test]
fn what_a_cursor_says_after_its_pass_is_not_heard() {
    let mut history = History::default();
    for time in 1..=9 {
        history.push(time << 32, 0, Kind::Insert);
    }
    let mut live = IngestCore::new(Arc::new(Mapping::Plain), SlotTable { shards: 1 }, vec![BACKEND]);
    let mut catch_up = CatchUpCore::new(&live, HALVE_WITHIN);
    let mut out = Vec::new();
    live.opened(0, LINEAGE, (9 << 32, 1), None);
    live.filter(ShardIndex(0), Arc::new(FilterSnapshot::everything(1)), &mut out);
    let wants = |lowest: u64, serving| {
        Arc::new(CatchUpWanted { version: 0, lowest: [at((lowest << 32, 1))].into_iter().collect(), serving })
    };
    let batch = |events: &[usize]| {
        let events = events.iter().map(|event| history.events[event - 1].bytes.clone()).collect();
        Said::Batch(Batch { events, ..Batch::default() })
    };
    catch_up.wanted(ShardIndex(0), wants(5, Vec::new()));
    catch_up.tick(&live, Millis(1), |_| true, &mut out);
    let first = catch_up.open(&live, 0, Millis(1)).unwrap();
    let opened = Said::Opened { start: (5 << 32, 0) };
    assert!(catch_up.hear(&live, 0, first.number, opened, Millis(1), &mut out));
    assert!(catch_up.grant(0) && !catch_up.grant(0), "one batch at a time");
    // Nobody needs it any more, and somebody lacks what is further back: one tick ends the pass and begins the next. The batch of the
    // first one's cursor was under way.
    catch_up.wanted(ShardIndex(0), wants(2, vec![(BACKEND, 1, 0)]));
    catch_up.tick(&live, Millis(2), |_| true, &mut out);
    assert_eq!(catch_up.pass(0).map(|pass| pass.number), Some(2));
    assert!(!catch_up.hear(&live, 0, first.number, batch(&[6, 7]), Millis(2), &mut out));
    let second = catch_up.open(&live, 0, Millis(2)).unwrap();
    assert_eq!(second, Opening { number: first.number + 1, start: Start::At { time: 2 << 32 } });
    // Nor once the new one is being opened, nor when it is open, nor does the end of the old one end it.
    assert!(!catch_up.hear(&live, 0, first.number, batch(&[6, 7]), Millis(2), &mut out));
    let opened = Said::Opened { start: (2 << 32, 0) };
    assert!(catch_up.hear(&live, 0, second.number, opened, Millis(2), &mut out));
    assert!(!catch_up.hear(&live, 0, first.number, batch(&[6, 7]), Millis(2), &mut out));
    let failed = Said::Failed { error: SourceError::Transient("a test".into()), retry_at: Millis(9) };
    assert!(!catch_up.hear(&live, 0, first.number, failed, Millis(2), &mut out));
    assert!(catch_up.grant(0));
    assert!(catch_up.hear(&live, 0, second.number, batch(&[2, 3, 4, 5, 6, 7, 8, 9]), Millis(2), &mut out));
    catch_up.work(&live, 0, 100, &mut out).unwrap();
    let mut times = Vec::new();
    while let Some(item) = catch_up.take(ShardIndex(0)) {
        if let FromIngest::CatchUp(CatchUp::Change { pass: 2, change }) = item {
            times.push(change.position.time >> 32);
        }
    }
    assert_eq!(times, [3, 4, 5, 6, 7, 8, 9]);
}
