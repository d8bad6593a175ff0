//! One choice at each of many sites, such that the errors keep a budget at the least cost.

/// What a choice costs, and the error variance that it adds to the outputs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Price {
    pub(crate) cost: f64,
    pub(crate) error: f64,
}

/// The index of one choice of each site, such that the errors stay within the budget at the least cost: the least of cost +
/// price·error at the lowest price of error that keeps the budget (bisection), which is optimal on the convex hull of
/// the choices; what is left of the budget is then spent greedily. A budget that nothing keeps gets about the least errors there are.
pub(crate) fn cheapest(sites: &[Vec<Price>], budget: f64) -> Vec<usize> {
    let at_price = |price: f64| -> Vec<usize> {
        let value = |c: &Price| c.cost + price * c.error / budget;
        sites.iter().map(|c| (0..c.len()).min_by(|&a, &b| value(&c[a]).total_cmp(&value(&c[b]))).unwrap_or(0)).collect()
    };
    let (mut low, mut high) = (1e-3_f64, 1e12_f64);
    for _ in 0..100 {
        let middle = (low * high).sqrt();
        if total(sites, &at_price(middle)).error <= budget { high = middle } else { low = middle }
    }
    let mut chosen = at_price(high);
    loop {
        let left = budget - total(sites, &chosen).error;
        let better = sites.iter().enumerate().flat_map(|(s, choices)| {
            let now = choices[chosen[s]];
            let affordable = move |(_, c): &(usize, &Price)| c.cost < now.cost && c.error - now.error <= left;
            choices
                .iter()
                .enumerate()
                .filter(affordable)
                .map(move |(i, c)| (now.cost - c.cost, s, i))
                .collect::<Vec<_>>()
        });
        let Some((_, s, i)) = better.max_by(|a, b| a.0.total_cmp(&b.0)) else { return chosen };
        chosen[s] = i;
    }
}

/// The least errors that cost no more than `most`, or the cheapest choices where those cost more.
pub(crate) fn least_error(sites: &[Vec<Price>], most: f64) -> Vec<usize> {
    let swapped: Vec<Vec<Price>> =
        sites.iter().map(|s| s.iter().map(|c| Price { cost: c.error, error: c.cost }).collect()).collect();
    cheapest(&swapped, most.max(f64::MIN_POSITIVE))
}

/// What a choice at each site costs and errs in all.
pub(crate) fn total(sites: &[Vec<Price>], chosen: &[usize]) -> Price {
    let all = sites.iter().zip(chosen).filter_map(|(c, &i)| c.get(i));
    all.fold(Price { cost: 0.0, error: 0.0 }, |sum, c| Price { cost: sum.cost + c.cost, error: sum.error + c.error })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sites() -> Vec<Vec<Price>> {
        let site = |width: f64, count: f64| {
            (0..3).map(|e: i32| Price { cost: count * 2_f64.powi(e), error: width * 4_f64.powi(-e) }).collect()
        };
        vec![site(100.0, 1.0), site(1.0, 1.0), site(16.0, 10.0), site(3.0, 2.0)]
    }

    /// Of all choices within the budget, the cheapest.
    fn exhaustive(sites: &[Vec<Price>], budget: f64) -> f64 {
        let count: usize = sites.iter().map(Vec::len).product();
        let nth = |mut n: usize| -> Vec<usize> {
            let digit = |s: &Vec<Price>| {
                let d = n % s.len();
                n /= s.len();
                d
            };
            sites.iter().map(digit).collect()
        };
        let all = (0..count).map(|n| total(sites, &nth(n))).filter(|t| t.error <= budget);
        all.map(|t| t.cost).fold(f64::INFINITY, f64::min)
    }

    #[test]
    fn budgets_are_kept_and_the_cost_is_near_the_least() {
        let sites = sites();
        for budget in [8.0, 12.0, 20.0, 30.0, 50.0, 119.0, 200.0] {
            let found = total(&sites, &cheapest(&sites, budget));
            let least = exhaustive(&sites, budget);
            assert!(found.error <= budget, "{budget}: {found:?}");
            // Off the convex hull a choice may be missed.
            assert!(found.cost <= 1.25 * least, "{budget}: {found:?} but {least}");
        }
        assert!((total(&sites, &cheapest(&sites, 200.0)).cost - 14.0).abs() < 1e-9);
    }

    #[test]
    fn the_least_error_within_a_cost() {
        let sites = sites();
        let found = total(&sites, &least_error(&sites, 20.0));
        assert!(found.cost <= 20.0 && found.error < 31.0, "{found:?}");
        assert!((total(&sites, &least_error(&sites, 1e6)).error - 120.0 / 16.0).abs() < 1e-9);
    }
}
