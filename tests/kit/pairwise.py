"""All pairs of option values in few rows, and rows that break one rule each.

A rule is {factor: values}: a row is refused where every factor of the rule has one of its values. Rules hold for
rows that are not complete yet too, so that a generator can go by them.
"""

import itertools

import numpy as np


def broken(row, rules):
    """The rules that this row, complete or not, breaks."""
    return [r for r in rules if all(name in row and row[name] in values for name, values in r.items())]


def pairs_of(row):
    return set(itertools.combinations(sorted(row.items()), 2))


def complete(row, factors, rules, wanted, rng):
    """`row` with the other factors filled in, each with what covers most of the wanted pairs; None in a dead end."""
    row = dict(row)
    for name in rng.permutation([name for name in factors if name not in row]):
        best, most = [], -1
        for value in factors[name]:
            trial = row | {name: value}
            if broken(trial, rules):
                continue
            gain = sum((min(p, q), max(p, q)) in wanted for p in [(name, value)] for q in row.items())
            if gain > most:
                best, most = [], gain
            if gain == most:
                best.append(value)
        if not best:
            return None
        row[str(name)] = best[rng.integers(len(best))]
    return row


def all_pairs(factors, rules, rng, tries=6):
    """(rows, pairs that no row can hold): rows that break no rule and cover every other pair of values."""
    items = [(name, value) for name in factors for value in factors[name]]
    wanted = {tuple(sorted(pair)) for pair in itertools.combinations(items, 2) if pair[0][0] != pair[1][0]}
    rows, impossible = [], set()
    while wanted:
        pair = min(wanted)
        found = [
            row
            for _ in range(tries if not broken(dict(pair), rules) else 0)
            if (row := complete(dict(pair), factors, rules, wanted, rng))
        ]
        if not found:
            wanted.remove(pair)
            impossible.add(pair)
            continue
        best = max(found, key=lambda row: len(pairs_of(row) & wanted))
        wanted -= pairs_of(best)
        rows.append(best)
    return rows, impossible


def breaking(rule, factors, rules, rng, count=2):
    """Rows that break this rule and no other."""
    rows = []
    others = [other for other in rules if other is not rule]
    for _ in range(50 * count):
        start = {name: values[rng.integers(len(values))] for name, values in rule.items()}
        if not broken(start, others) and (row := complete(start, factors, others, set(), rng)):
            rows.append(row)
            if len(rows) == count:
                break
    return rows


class Rows:
    """Rows that break no rule and hold every pair of values that some row can."""

    def __init__(self, factors, rules, seed):
        self.factors, self.rules = factors, rules
        self.rows, _ = all_pairs(factors, rules, np.random.default_rng(seed))

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number):
        return self.rows[number]

    def name(self, number):
        return "-".join(map(str, (number, *(self.rows[number][factor] for factor in self.factors))))

    def uncovered(self):
        """Pairs that break no rule and are in no row, and rows that break one."""
        pairs = set().union(*map(pairs_of, self.rows))
        items = [(name, value) for name in self.factors for value in self.factors[name]]
        wanted = [pair for pair in itertools.combinations(items, 2) if pair[0][0] != pair[1][0]]
        missing = [p for p in wanted if not broken(dict(p), self.rules) and tuple(sorted(p)) not in pairs]
        return missing + [row for row in self.rows if broken(row, self.rules)]

    def breaking(self, rule, seed):
        """Two rows that break this rule and no other."""
        return breaking(rule, self.factors, self.rules, np.random.default_rng(seed))
