"""What a policy's selectors mean: the labels they are about, limited to the namespace they are said in.

Calico's rules (libcalico-go, updateprocessors): an endpoint carries its namespace and service account as labels
`projectcalico.org/...`, and inherits its namespace's labels as `pcns.*` and its service account's as `pcsa.*` from its
profiles. So every selector of a policy becomes one selector on endpoints:
- a namespaced policy selects in its own namespace;
- in its rules, a side that selects in any way, if only by a notSelector, and has no namespaceSelector means its own
  namespace too;
- a notSelector takes away from what a side selects; where that is nothing (a global policy), from everybody there is;
- a namespaceSelector is about `pcns.*`; its `all()` is any namespace, its `global()` none;
- a serviceAccountSelector is about `pcsa.*`, service account names about `projectcalico.org/serviceaccount`;
- `all()` anywhere in a global policy's selectors means what has a namespace beside a namespaceSelector, and what has a
  service account beside a serviceAccountSelector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from routed.model.kubernetes import NAMESPACE_LABELS
from routed.model.policies import EntityRule, GlobalNetworkPolicy, Policy
from routed.model.selector import (
    All,
    And,
    Contains,
    EndsWith,
    Equal,
    Global,
    Has,
    In,
    Not,
    NotEqual,
    NotIn,
    Or,
    Selector,
    StartsWith,
)
from routed.model.workloads import WorkloadEndpoint

NAMESPACE = "projectcalico.org/namespace"
SERVICE_ACCOUNT = "projectcalico.org/serviceaccount"
SERVICE_ACCOUNT_LABELS = "pcsa."
_INHERITED = (NAMESPACE_LABELS, SERVICE_ACCOUNT_LABELS)
"""Prefixes of labels an endpoint can only inherit."""


def subjects(policy: Policy) -> Selector:
    """Which endpoints a policy is for."""
    parts: list[Selector] = []
    if policy.key.namespace:
        parts.append(Equal(NAMESPACE, policy.key.namespace))
    namespaces = policy.namespace_selector if isinstance(policy, GlobalNetworkPolicy) else None
    if namespaces is not None:
        parts.append(of_namespaces(namespaces))
    if policy.service_account_selector is not None:
        parts.append(prefixed(policy.service_account_selector, SERVICE_ACCOUNT_LABELS))
    if policy.selector is not None:
        parts.append(policy.selector)
    if namespaces is not None:
        parts = [_everybody(part, NAMESPACE) for part in parts]
    elif policy.service_account_selector is not None and not policy.key.namespace:
        parts = [_everybody(part, SERVICE_ACCOUNT) for part in parts]
    return both(*parts)


def peers(entity: EntityRule, namespace: str) -> Selector | None:
    """Which endpoints and network sets a side of a rule is about; None: it does not ask for any."""
    parts: list[Selector] = []
    if entity.selector is not None:
        parts.append(entity.selector)
    accounts = entity.service_accounts
    if accounts is not None:
        if accounts.selector is not None:
            parts.append(prefixed(accounts.selector, SERVICE_ACCOUNT_LABELS))
        if accounts.names:
            parts.append(In(SERVICE_ACCOUNT, frozenset(accounts.names)))
    if entity.namespace_selector is not None:
        parts.insert(0, of_namespaces(entity.namespace_selector))
    elif not parts and (entity.not_selector is None or not namespace):
        return None
    elif namespace:
        parts.insert(0, Equal(NAMESPACE, namespace))
    if entity.not_selector is not None:
        parts.append(Not(entity.not_selector))
    return both(*parts)


def strangers(entity: EntityRule, namespace: str) -> Selector | None:
    """Which endpoints and network sets a side of a rule is not about, where it may be about anybody else."""
    return entity.not_selector if peers(entity, namespace) is None else None


def both(*parts: Selector) -> Selector:
    """All of them."""
    distinct = tuple(dict.fromkeys(part for part in parts if not isinstance(part, All)))
    if not distinct:
        return All()
    return distinct[0] if len(distinct) == 1 else And(distinct)


def _rewritten(selector: Selector, part: Callable[[Selector], Selector]) -> Selector:
    """The same selector with each of its parts that is about labels itself put through `part`."""
    match selector:
        case Not(operand):
            return Not(_rewritten(operand, part))
        case And(operands):
            return And(tuple(_rewritten(operand, part) for operand in operands))
        case Or(operands):
            return Or(tuple(_rewritten(operand, part) for operand in operands))
        case _:
            return part(selector)


def _everybody(selector: Selector, label: str) -> Selector:
    """With `all()` as what has a label."""
    return _rewritten(selector, lambda part: Has(label) if isinstance(part, All) else part)


def of_namespaces(selector: Selector) -> Selector:
    """A namespaceSelector, as endpoints know their namespaces."""
    return _rewritten(selector, _of_namespaces)


def _of_namespaces(part: Selector) -> Selector:
    match part:
        case All():
            return Has(NAMESPACE)
        case Global():
            return Not(Has(NAMESPACE))
        case _:
            return _prefixed(part, NAMESPACE_LABELS)


def prefixed(selector: Selector, prefix: str) -> Selector:
    """The same selector about labels that begin with a prefix."""
    return _rewritten(selector, lambda part: _prefixed(part, prefix))


def _prefixed(part: Selector, prefix: str) -> Selector:
    match part:
        case Has(label):
            return Has(prefix + label)
        case Equal(label, value):
            return Equal(prefix + label, value)
        case NotEqual(label, value):
            return NotEqual(prefix + label, value)
        case Contains(label, value):
            return Contains(prefix + label, value)
        case StartsWith(label, value):
            return StartsWith(prefix + label, value)
        case EndsWith(label, value):
            return EndsWith(prefix + label, value)
        case In(label, values):
            return In(prefix + label, values)
        case NotIn(label, values):
            return NotIn(prefix + label, values)
        case _:
            return part


def workload_labels(endpoint: WorkloadEndpoint, namespace: str) -> Mapping[str, str]:
    """The labels by which an endpoint is selected, those it inherits from profiles excepted."""
    written, account = endpoint.labels, endpoint.service_account_name
    if written.get(NAMESPACE) == namespace and (not account or written.get(SERVICE_ACCOUNT) == account):
        names = " ".join(written)
        if NAMESPACE_LABELS not in names and SERVICE_ACCOUNT_LABELS not in names:
            return written  # as Calico writes nearly all
    labels = {label: value for label, value in written.items() if not label.startswith(_INHERITED)}
    labels[NAMESPACE] = namespace
    if account:
        labels[SERVICE_ACCOUNT] = account
    return labels
