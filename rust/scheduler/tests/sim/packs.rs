//! Packs in the simulation: they come and go at any turn, and requests begin with them.

use std::collections::BTreeMap;

use octavo_scheduler::{AttentionPolicy, NO_ADAPTER, NewRequest, PackTerms, Scheduler, SchedulerConfig};

use super::executor::Executor;
use super::random::Random;

/// The packs that are held. A generator of their own: the workload of a seed does not depend on them.
pub struct Packs {
    random: Random,
    on: bool,
    ids: u32,
    held: BTreeMap<u32, Vec<u32>>,
    /// Packs that were held.
    pub holds: u64,
    /// Requests that began with one.
    pub attached: u64,
}

impl Packs {
    pub fn new(seed: u64, on: bool) -> Self {
        Self { random: Random::new(seed), on, ids: 0, held: BTreeMap::new(), holds: 0, attached: 0 }
    }

    /// Perhaps holds a pack, or lets one go.
    pub fn disturb(&mut self, config: &SchedulerConfig, scheduler: &mut Scheduler, executor: &mut Executor) {
        if !self.on {
            return;
        }
        if self.random.one_in(6) {
            self.hold(config, scheduler, executor);
        }
        if self.random.one_in(10)
            && let Some((id, _)) = self.held.pop_first()
        {
            scheduler.release_pack(id);
        }
    }

    fn hold(&mut self, config: &SchedulerConfig, scheduler: &mut Scheduler, executor: &mut Executor) {
        let blocks = self.random.range(1, 3);
        let tokens = vec![self.random.range(0, 1); (blocks * config.block_size) as usize];
        let id = self.ids;
        self.ids += 1;
        if scheduler.hold_pack(id, tokens.clone()).is_err() {
            return;
        }
        self.holds += 1;
        executor.import_pack(id, scheduler.pack_blocks(id), &tokens);
        let block = self.random.range(0, blocks - 1);
        if let Ok((plan, scratch)) = scheduler.plan_check(id, block, PackTerms::default()) {
            let held = scheduler.pack_blocks(id);
            assert!(!held.contains(&scratch), "a check writes into the pack");
            assert_eq!(plan.block_tables[..block as usize], held[..block as usize]);
            assert_eq!(*plan.block_tables.last().expect("a block"), scratch);
            let first = block * config.block_size;
            assert!(plan.positions.iter().copied().eq(first..first + config.block_size));
            assert_eq!(plan.tokens, tokens[first as usize..][..config.block_size as usize]);
            assert_eq!(plan.sealed.len(), usize::from(config.open_blocks));
            executor.write_check(&plan, id);
            scheduler.end_check();
        }
        if self.random.one_in(8) {
            scheduler.release_pack(id);
        } else {
            scheduler.finish_pack(id);
            self.held.insert(id, tokens);
        }
    }

    /// The request, with a pack if it can begin with one.
    pub fn attach(&mut self, request: NewRequest) -> NewRequest {
        let plain = request.adapter == NO_ADAPTER && request.attention == AttentionPolicy::DENSE;
        let fits = |(_, tokens): &(&u32, &Vec<u32>)| request.prompt.starts_with(tokens);
        let pack = self.held.iter().rev().find(fits).map(|(&id, _)| id).filter(|_| plain);
        self.attached += u64::from(pack.is_some());
        NewRequest { pack, ..request }
    }

    /// Lets all packs go.
    pub fn release_all(&mut self, scheduler: &mut Scheduler) {
        while let Some((id, _)) = self.held.pop_first() {
            scheduler.release_pack(id);
        }
    }
}
