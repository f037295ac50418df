"""A shop of four services, one in three versions, runs the classic tasks of Istio's networking API on hosts."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from apps.certificates import Company
from apps.stage import App, Caller, Reply, app_on, lab_of, wait_for_port
from e2e.driver import eventually

REVIEWS = "http://reviews:9080/"
RATINGS = "http://ratings:9080/"
CATALOG = "http://catalog:9080/"
CA = "/etc/shop/ca.pem"
"""On the storefront's host: whom to trust outside."""
DOMAINS = {"partner": "api.partner.example", "bank": "bank.example"}


@dataclass(frozen=True)
class Shop:
    """`front` calls as the storefront's host does, `outside` as somebody who is not in the mesh."""

    app: App
    front: Caller
    outside: Caller
    company: Company

    def knock(self, url: str, **told: Any) -> Reply:
        """Call the gateway from outside, by a name that only its configuration knows."""
        return self.outside.get(url, **self.door(url), **told)

    def door(self, url: str) -> dict[str, Any]:
        port = 443 if url.startswith("https") else 80
        return {"connect": [self.app.addresses["edge"], port], "ca": str(self.company.ca)}

    def page(self, path: str = "/", **headers: str) -> dict[str, dict[str, object]]:
        """What the storefront was told by the services behind it."""
        reply = self.outside.get(f"http://{self.app.addresses['front']}:9080{path}", headers=headers)
        assert reply.status == 200, reply
        found: dict[str, dict[str, object]] = reply.json["calls"]
        return found


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with lab_of("front", "east", "west", "edge", outside="outside") as lab:
        app = app_on(lab, "shop")
        company = Company(tmp_path_factory.mktemp("company"))
        lab.put("front", CA, company.ca.read_text())
        _start(app, company)
        app.apply("shop")
        lab.wait_for_workloads()
        app.apply("reviews-subsets")
        with Caller(lab, "front") as front, Caller(lab, "outside") as outside:
            yield Shop(app, front, outside, company)


def _start(app: App, company: Company) -> None:
    calls = [f"catalog={CATALOG}", f"reviews={REVIEWS}"]
    app.program("front", "service", "storefront", "--calls", *calls)
    app.program("east", "service", "catalog", "--port", "9081")
    for host, port, version in (("east", "9082", "v1"), ("west", "9082", "v2"), ("west", "9083", "v3")):
        # The first version shows no ratings.
        ratings = [] if version == "v1" else ["--calls", f"ratings={RATINGS}"]
        app.program(host, "service", "reviews", "--version", version, "--port", port, *ratings)
    app.program("west", "service", "catalog", "--version", "v2", "--port", "9081")
    for name, port in (("partner", "8443"), ("bank", "9443")):
        app.program("outside", "service", name, "--port", port, "--tls", str(company.issue(DOMAINS[name])))
    for host, version in (("east", "north"), ("west", "south")):
        app.program(host, "service", "ratings", "--version", version, "--port", "9084")
    wait_for_port(app.lab, "front", 9080)
    wait_for_port(app.lab, "east", 9081, 9082, 9084)
    wait_for_port(app.lab, "outside", 8443, 9443)
    wait_for_port(app.lab, "west", 9081, 9082, 9083, 9084)


def test_requests_are_routed_by_who_asks(shop: Shop) -> None:
    with shop.app.configured("reviews-by-user"):
        for user, version in (("jason", "v2"), ("anna@shop", "v3"), ("anna", "v1"), ("", "v1")):
            headers = {"end-user": user} if user else {}
            seen = [shop.page(**headers)["reviews"] for _ in range(3)]
            assert {each.get("version") for each in seen} == {version}, (user, seen)
        assert shop.front.get(f"{REVIEWS}?preview=yes").who == "reviews v3"
        assert shop.front.get(f"{REVIEWS}?preview=no").who == "reviews v1"


def test_every_service_knows_who_called_it(shop: Shop) -> None:
    with shop.app.configured("reviews-to", version="v2"):
        reviews = shop.page()["reviews"]
        caller = str(reviews["headers"]["x-forwarded-client-cert"])  # type: ignore[index] # JSON
        assert "URI=spiffe://cluster.local/ns/shop/sa/storefront" in caller


def test_traffic_shifts_under_load_and_no_request_fails(shop: Shop) -> None:
    with shop.app.configured("reviews-to", version="v1"), shop.front.load(REVIEWS) as load:
        for old, new in ((90, 10), (50, 50), (0, 100), (100, 0)):
            shop.app.apply("reviews-weights", v1=str(old), v3=str(new))
            seen = load.fresh(300)
            share = 100 * seen["versions"].get("reviews v3", 0) / seen["sent"]
            # Five standard deviations of a share of 300 at the most.
            assert abs(share - new) < (15 if new not in (0, 100) else 0.001), (old, new, seen)
    assert load.tally["failed"] == 0, load.tally


def test_a_subset_comes_and_goes_under_load_and_no_request_fails(shop: Shop) -> None:
    with shop.app.configured("reviews-to", version="v1"), shop.front.load(REVIEWS) as load:
        for _ in range(3):
            shop.app.apply("reviews-canary")
            assert set(load.fresh(50)["versions"]) == {"reviews v2"}
            shop.app.apply("reviews-to", version="v1")
            shop.app.apply("reviews-subsets")
            assert set(load.fresh(50)["versions"]) == {"reviews v1"}
    assert load.tally["failed"] == 0, load.tally


def test_a_delay_is_injected_and_a_timeout_ends_the_wait(shop: Shop) -> None:
    with shop.app.configured("ratings-slow"):
        slow, quick = (shop.front.get(RATINGS, headers=headers) for headers in ({"end-user": "jason"}, {}))
        assert (slow.status, slow.took_s >= 1.0) == (200, True)
        assert (quick.status, quick.took_s < 1.0) == (200, True)
        with shop.app.configured("reviews-timeout"):
            assert shop.front.get(REVIEWS).status == 200
            late = shop.front.get(REVIEWS, headers={"end-user": "jason"})
            assert (late.status, late.body) == (504, "upstream request timeout")
            page = shop.page(**{"end-user": "jason"})
            assert (page["reviews"]["status"], page["catalog"]["status"]) == (504, 200)


def test_an_abort_is_injected_for_one_user_and_for_a_share_of_the_others(shop: Shop) -> None:
    with shop.app.configured("ratings-failing", percent="50"):
        assert shop.front.many(RATINGS, 10, headers={"end-user": "jason"})["statuses"] == {"500": 10}
        statuses = shop.front.many(RATINGS, 400, workers=4)["statuses"]
        assert set(statuses) == {"200", "418"}
        assert 150 < statuses["418"] < 250, statuses


def test_a_failed_request_is_tried_again_so_often(shop: Shop) -> None:
    for attempts, status in (("2", 200), ("1", 503)):
        with shop.app.configured("catalog-retries", attempts=attempts):
            before = shop.app.served("east", 9081).get("/", 0)
            shop.app.behave("east", 9081, status=503, first=2)
            assert shop.front.get(CATALOG).status == status
            assert shop.app.served("east", 9081)["/"] - before == int(attempts) + 1
            shop.app.behave("east", 9081)


def test_a_try_that_takes_too_long_is_given_up_and_made_again(shop: Shop) -> None:
    with shop.app.configured("catalog-retries", attempts="1"):
        shop.app.behave("east", 9081, delay_s=3.0, first=1)
        reply = shop.front.get(CATALOG)
        assert (reply.status, 1.0 <= reply.took_s < 3.0) == (200, True)


def test_a_circuit_breaks_at_its_limits_and_closes_again(shop: Shop) -> None:
    with shop.app.configured("catalog-limits"):
        storm = shop.front.many(f"{CATALOG}delay/0.05", 60, workers=6)
        assert set(storm["statuses"]) == {"200", "503"}, storm
        assert storm["overflows"] == storm["statuses"]["503"]
        assert shop.front.many(CATALOG, 20)["statuses"] == {"200": 20}
    assert shop.front.many(f"{CATALOG}delay/0.05", 60, workers=6)["statuses"] == {"200": 60}


def test_an_instance_that_fails_is_left_out_and_comes_back(shop: Shop) -> None:
    with shop.app.configured("ratings-ejection"):
        shop.app.behave("east", 9084, status=500)
        # Envoy tells its workers of a failing instance at once, or up to a second after it told them something else.
        eventually(lambda: shop.front.many(RATINGS, 20)["versions"] == {"ratings south": 20}, "north is left out")
        shop.app.behave("east", 9084)
        eventually(lambda: "ratings north" in shop.front.many(RATINGS, 10)["versions"], "north serves again")


def test_callers_stay_in_their_locality_and_leave_it_only_while_it_is_ill(shop: Shop) -> None:
    with shop.app.configured("catalog-locality", "catalog-south"):
        assert shop.front.many(CATALOG, 30)["versions"] == {"catalog v1": 30}
        shop.app.behave("east", 9081, status=503)
        eventually(lambda: shop.front.many(CATALOG, 20)["versions"] == {"catalog v2": 20}, "all go to the south")
        shop.app.behave("east", 9081)
        eventually(lambda: shop.front.many(CATALOG, 10)["versions"] == {"catalog v1": 10}, "all are back in the north")


def test_traffic_is_spread_over_localities_as_it_is_told(shop: Shop) -> None:
    with shop.app.configured("catalog-distribute", "catalog-south"):
        versions = shop.front.many(CATALOG, 400, workers=4)["versions"]
        assert 220 < versions["catalog v1"] < 340, versions


def test_tls_is_originated_towards_a_service_outside(shop: Shop) -> None:
    with shop.app.configured("partner", ca=CA, name="api.partner.example"):
        reply = shop.front.get("http://api.partner.example/orders")
        assert (reply.status, reply.who, reply.json["path"]) == (200, "partner v1", "/orders")
        # A program that speaks TLS itself is passed on, and checks the certificate itself.
        reply = shop.front.get("https://api.partner.example/orders", ca=str(shop.company.ca))
        assert (reply.status, reply.who) == (200, "partner v1")
    with shop.app.configured("partner", ca=CA, name="other.partner.example"):
        assert shop.front.get("http://api.partner.example/orders").status == 503


def test_requests_are_mirrored_and_the_mirrors_answers_are_not_heard(shop: Shop) -> None:
    with shop.app.configured("reviews-mirror", percent="100"):
        before = shop.app.served("west", 9082).get("/mirrored", 0)
        shop.app.behave("west", 9082, status=500)
        seen = shop.front.many(f"{REVIEWS}mirrored", 20)
        assert (seen["statuses"], seen["versions"]) == ({"200": 20}, {"reviews v1": 20})
        eventually(lambda: shop.app.served("west", 9082).get("/mirrored", 0) - before == 20, "v2 heard all of them")
        shop.app.behave("west", 9082)


@pytest.fixture
def ingress(shop: Shop) -> Iterator[Shop]:
    """The shop's door is open."""
    with ExitStack() as stack:
        shop.company.issue("shop.example")
        stack.enter_context(shop.app.configured("credential", **shop.company.secret("shop.example")))
        stack.enter_context(shop.app.configured("ingress", v1="100", v3="0"))
        yield shop


def test_strangers_come_in_by_https_and_are_told_so(ingress: Shop) -> None:
    reply = ingress.knock("https://shop.example/")
    assert (reply.status, reply.who) == (200, "storefront v1"), reply
    assert "sa/ingress" in reply.json["headers"]["x-forwarded-client-cert"]
    reply = ingress.knock("http://shop.example/reviews/")
    assert (reply.status, reply.headers["location"]) == (301, "https://shop.example/reviews/")
    assert ingress.knock("https://shop.example/reviews/").json["path"] == "/"
    assert ingress.knock("https://shop.example/nowhere").status == 404


def test_tls_of_others_is_passed_on_by_its_name(ingress: Shop) -> None:
    reply = ingress.knock("https://bank.example/account")
    assert (reply.status, reply.who, reply.json["path"]) == (200, "bank v1", "/account"), reply
    unknown = ingress.knock("https://nobody.example/")
    assert unknown.status == 0, unknown


def test_a_partner_shows_a_certificate_and_a_stranger_is_refused(ingress: Shop) -> None:
    ingress.company.issue("partners.shop.example")
    ingress.app.apply("credential", **ingress.company.secret("partners.shop.example"))
    own = str(ingress.company.issue("a-partner.example"))
    assert ingress.knock("https://partners.shop.example/", certificate=own).status == 200
    assert ingress.knock("https://partners.shop.example/").status == 0


def test_a_new_certificate_and_other_weights_fail_no_stranger(ingress: Shop) -> None:
    url = "https://shop.example/reviews/"
    with ingress.outside.load(url, **ingress.door(url)) as load:
        for v1, v3 in ((50, 50), (0, 100)):
            ingress.company.issue("shop.example")
            ingress.app.apply("credential", **ingress.company.secret("shop.example"))
            ingress.app.apply("ingress", v1=str(v1), v3=str(v3))
            seen = load.fresh(100)
            assert abs(100 * seen["versions"].get("reviews v3", 0) / seen["sent"] - v3) < 25, seen
    assert load.tally["failed"] == 0, load.tally
