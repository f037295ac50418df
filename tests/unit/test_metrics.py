"""The controller's metrics as a scraper sees them."""

from collections import Counter

from hostmesh_api.wire import CLUSTER_TYPE, VIP4, VIP6
from hostmesh_controller import mesh
from hostmesh_controller.hub import Hub
from hostmesh_controller.hub_readings import readings
from hostmesh_controller.metrics import Metrics, Reading


def test_every_metric_has_the_controllers_prefix() -> None:
    lines = Metrics().render().decode().splitlines()
    assert lines
    assert all(line.split()[2].startswith("hostmesh_controller_") for line in lines if line.startswith("# TYPE"))


def test_what_parts_tell_is_read_at_the_scrape() -> None:
    metrics, values = Metrics(), Counter[tuple[str, ...]]()
    metrics.read_from(lambda: [Reading("hostmesh_controller_pushes", "Help.", ("type",), values, total=True)])
    values["Cluster",] += 3
    assert 'hostmesh_controller_pushes_total{type="Cluster"} 3.0' in metrics.render().decode()


def test_types_that_peers_make_up_are_one_series() -> None:
    hub = Hub(mesh.build(mesh.Settings("cluster.local", "cluster.local", VIP4, VIP6), (), {}, {}), 7)
    hub.counts.nacks.update({CLUSTER_TYPE: 2, "type.googleapis.com/made.Up": 1, "type.googleapis.com/made.Up2": 4})
    found = {reading.name: reading for reading in readings(hub, lambda: 9)}
    assert found["hostmesh_controller_nacks"].values == {("Cluster",): 2, ("other",): 5}
    assert found["hostmesh_controller_published_revision"].values == {(): 7}
    assert found["hostmesh_controller_store_revision"].values == {(): 9}


def test_two_controllers_in_one_process_do_not_share_counts() -> None:
    first, second = Metrics(), Metrics()
    first.join_attempts.labels("token", "ok").inc()
    assert 'join_attempts_total{attestor="token",result="ok"}' in first.render().decode()
    assert 'join_attempts_total{attestor="token",result="ok"}' not in second.render().decode()
