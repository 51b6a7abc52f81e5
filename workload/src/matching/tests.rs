use bson::Document;

use super::*;

fn answers(world: &World, pool: &Pool) -> Vec<Vec<Answer>> {
    expected(world, pool, 0..pool.len(), 2)
}

#[test]
fn the_oracle_sees_what_brute_force_sees_and_there_are_as_many_matches_as_wanted() {
    for workload in Workload::ALL {
        for subscriptions in [1_000, 3_050] {
            let world = World::new(workload, subscriptions, 7);
            let pool = world.events(1_000);
            let answers = answers(&world, &pool);
            let asked = confirm(&world, &pool, &answers, 60_000).unwrap_or_else(|what| panic!("{what}"));
            let matches = answers.iter().map(Vec::len).sum::<usize>() as f64 / pool.len() as f64;
            println!("{} {subscriptions}: {matches} matches an event, {asked} asked", workload.name());
            if let Some(wanted) = world.matches_wanted() {
                assert!(wanted.contains(&matches), "{} {subscriptions}: {matches}", workload.name());
            }
            assert_eq!(workload == Workload::Miss, asked == 0);
        }
    }
}

#[test]
fn the_matches_stay_as_many_with_many_subscriptions() {
    for workload in [Workload::Mixed, Workload::MixedOne, Workload::Range, Workload::Pairs] {
        let world = World::new(workload, 40_000, 11);
        let pool = world.events(2_000);
        let matches = answers(&world, &pool).iter().map(Vec::len).sum::<usize>() as f64 / pool.len() as f64;
        println!("{}: {matches} matches an event", workload.name());
        assert!(world.matches_wanted().is_some_and(|wanted| wanted.contains(&matches)), "{matches}");
    }
}

#[test]
fn all_match_the_hot_value_and_nothing_else() {
    let world = World::new(Workload::HotValue, 500, 3);
    let pool = world.events(4 * HOT_STRIDE);
    let answers = answers(&world, &pool);
    for (event, answers) in answers.iter().enumerate() {
        let wanted = if event % HOT_STRIDE == HOT_STRIDE / 2 { 500 } else { 0 };
        assert_eq!(answers.len(), wanted, "{event}");
    }
}

#[test]
fn the_mix_is_what_it_is_said_to_be() {
    for workload in [Workload::Mixed, Workload::MixedOne] {
        let world = World::new(workload, 10_000, 5);
        let mut kinds = [0; 5];
        for subscription in 0..10_000 {
            let shape = world.shape(subscription);
            let tests: Vec<&Test> = shape.0.iter().map(|condition| &condition.test).collect();
            let kind = match &tests[..] {
                [Test::Equal(_)] => 0,
                [Test::Equal(_), Test::Range { lower, upper }] => {
                    assert!(lower.is_some() != upper.is_some());
                    1
                }
                [Test::Range { .. }] => 2,
                [Test::In(values)] => {
                    assert_eq!(values.len(), 5);
                    3
                }
                [Test::Equal(_), Test::Equal(_), Test::Prefix(_)] => 4,
                other => panic!("{other:?}"),
            };
            kinds[kind] += 1;
            for condition in &shape.0 {
                let text = matches!(condition.test, Test::Prefix(_));
                let number = matches!(condition.test, Test::Range { .. });
                assert!(!text || condition.field.is_text());
                assert!(!number || !condition.field.is_text());
            }
            let mut fields: Vec<Field> = shape.0.iter().map(|condition| condition.field).collect();
            fields.dedup();
            assert_eq!(fields.len(), shape.0.len(), "each condition on a field of its own");
        }
        assert_eq!(kinds, [6_000, 2_000, 1_000, 500, 500]);
    }
}

#[test]
fn documents_have_ten_fields_and_pairs_differ_in_two() {
    let world = World::new(Workload::Pairs, 1_000, 9);
    let pool = world.events(200);
    for event in 0..pool.len() {
        let PoolEvent { key, before, after, .. } = pool.event(event);
        assert_eq!(key[1..], (event as i64).to_le_bytes());
        let before = Document::from_reader(before.unwrap()).unwrap();
        let after = Document::from_reader(after).unwrap();
        assert!(before.keys().eq(FIELDS) && after.keys().eq(FIELDS));
        assert_eq!(FIELDS.iter().filter(|field| before.get(field) != after.get(field)).count(), 2);
    }
    assert!((180.0..260.0).contains(&pool.document_bytes()), "{}", pool.document_bytes());
}

#[test]
fn what_is_made_depends_on_its_number_alone() {
    let (some, more) = (World::new(Workload::Mixed, 1_000, 1), World::new(Workload::Mixed, 100_000, 1));
    assert_eq!(some.source(990), more.source(990));
    let (few, many) = (some.events(10), some.events(20));
    for event in 0..10 {
        assert_eq!(few.event(event).after, many.event(event).after);
    }
    let other = World::new(Workload::Mixed, 1_000, 2);
    assert_ne!(some.source(990), other.source(990));
    let cel = World::new(Workload::Cel, 1_000, 1);
    for subscription in 0..1_000 {
        let source = cel.source(subscription);
        assert!(source.filters.is_empty() && !source.expr.is_empty());
        assert_eq!(cel.shape(subscription), some.shape(subscription));
    }
}
