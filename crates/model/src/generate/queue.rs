//! Which prompt comes next.

use std::collections::VecDeque;

use tch::{Device, Tensor};

use crate::Result;

/// Prompts that wait, longest first and equal ones together.
#[derive(Debug)]
pub(super) struct Queue<'a> {
    prompts: &'a [Vec<u32>],
    waiting: VecDeque<usize>,
}

/// Prompts that are to be computed together.
#[derive(Debug)]
pub(super) struct Prefill {
    /// [N, T], filled up on the right.
    pub(super) ids: Tensor,
    /// How many are real, `[N]`.
    pub(super) lengths: Tensor,
}

impl<'a> Queue<'a> {
    pub(super) fn new(prompts: &'a [Vec<u32>]) -> Self {
        let mut order: Vec<usize> = (0..prompts.len()).collect();
        // Longest first: what does not fit in memory fails at once.
        order.sort_by(|&a, &b| {
            prompts[b]
                .len()
                .cmp(&prompts[a].len())
                .then_with(|| prompts[a].cmp(&prompts[b]))
        });
        Self {
            prompts,
            waiting: order.into(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The length of the longest prompt that waits.
    pub(super) fn longest(&self) -> usize {
        self.waiting.front().map_or(0, |&prompt| self.prompts[prompt].len())
    }

    /// The next prompts, `n` of them if there are so many.
    pub(super) fn take(&mut self, n: usize) -> Vec<usize> {
        let n = n.min(self.waiting.len());
        self.waiting.drain(..n).collect()
    }
}

impl Prefill {
    pub(super) fn new(prompts: &[&[u32]], device: Device) -> Result<Self> {
        let width = prompts.iter().map(|ids| ids.len()).max().unwrap_or(0);
        let mut ids = Vec::with_capacity(prompts.len() * width);
        for prompt in prompts {
            ids.extend(prompt.iter().map(|&id| i64::from(id)));
            ids.extend(std::iter::repeat_n(0, width - prompt.len()));
        }
        let lengths: Vec<i64> = prompts.iter().map(|ids| ids.len() as i64).collect();
        Ok(Self {
            ids: Tensor::f_from_slice(&ids)?
                .f_view([prompts.len() as i64, width as i64])?
                .f_to(device)?,
            lengths: Tensor::f_from_slice(&lengths)?.f_to(device)?,
        })
    }
}
