"""What several workers say is put together as one node's."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from sipproxy.gathering import merged

ONE = """# HELP sipproxy_calls_live calls between INVITE and end
# TYPE sipproxy_calls_live gauge
sipproxy_calls_live 3.0
# HELP sipproxy_responses_total what was answered
# TYPE sipproxy_responses_total counter
sipproxy_responses_total{method="INVITE",status="200"} 5.0
"""


def test_metrics_of_workers_stand_in_one_family_each_with_its_label() -> None:
    other = ONE.replace("3.0", "4.0") + '# HELP more words\n# TYPE more gauge\nmore{a="b c} d"} 1.0\n'
    families = {family.name: family for family in text_string_to_metric_families(merged({1: ONE, 2: other}))}
    live = {sample.labels["worker"]: sample.value for sample in families["sipproxy_calls_live"].samples}
    assert live == {"1": 3.0, "2": 4.0}
    assert families["sipproxy_calls_live"].documentation == "calls between INVITE and end"
    answered = families["sipproxy_responses"].samples
    assert [sample.labels for sample in answered] == [{"worker": w, "method": "INVITE", "status": "200"} for w in ("1", "2")]
    assert [sample.labels for sample in families["more"].samples] == [{"worker": "2", "a": "b c} d"}]
