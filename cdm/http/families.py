"""Families of metrics, as the client library of Prometheus has them, made with less ado."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.utils import floatToGoString

from cdm.durations import Durations

Labelled = Iterable[tuple[tuple[object, ...], float | None]]
"""Values by what their labels say; those that are None are not told."""


def gauge(name: str, about: str, value: float | None) -> Metric:
    """What goes up and down; None: it is not told."""
    return gauges(name, about, (), [((), value)])


def gauges(name: str, about: str, labels: tuple[str, ...], values: Labelled) -> Metric:
    """The same of several."""
    return _filled(GaugeMetricFamily(f"cdm_{name}", about, labels=labels), values)


def counter(name: str, about: str, value: float) -> Metric:
    """What only grows, for as long as the process lives; its name ends in ``_total``."""
    return counters(name, about, (), [((), value)])


def counters(name: str, about: str, labels: tuple[str, ...], values: Labelled) -> Metric:
    """The same of several."""
    return _filled(CounterMetricFamily(f"cdm_{name}", about, labels=labels), values)


def histogram(name: str, about: str, durations: Durations) -> Metric:
    """How long things took, in seconds."""
    sums = accumulate(durations.counts)
    bounds = (*map(floatToGoString, durations.bounds), "+Inf")
    return HistogramMetricFamily(
        f"cdm_{name}_seconds", about, buckets=list(zip(bounds, sums, strict=True)), sum_value=durations.total
    )


def ones(of: Mapping[tuple[object, ...], object] | Iterable[tuple[object, ...]]) -> Labelled:
    """The value 1 for each: what is told is that there is such a thing."""
    return ((each, 1.0) for each in of)


def _filled(family: GaugeMetricFamily | CounterMetricFamily, values: Labelled) -> Metric:
    for labels, value in values:
        if value is not None:
            family.add_metric([str(each) for each in labels], float(value))
    return family
