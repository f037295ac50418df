from hostmesh_controller.lab.subnet import Subnet, free_numbers


def test_a_lab_has_readable_addresses_of_both_families() -> None:
    net = Subnet(7)
    assert (net.address(2), net.address6(2), net.mac(2)) == ("10.201.7.2", "fd10:201:7::2", "02:c9:0a:c9:07:02")
    assert str(net.v4) == "10.201.7.0/24"
    assert net.v6[2].exploded.endswith("0002")


def test_every_host_address_lies_in_the_labs_networks() -> None:
    net = Subnet(255)
    for index in (1, 2, 253, 254):
        assert str(net.v4[index]) == net.address(index)


def test_numbers_whose_networks_the_machine_routes_are_not_free() -> None:
    free = free_numbers(["10.201.1.0/24", "10.201.2.128/25", "fd10:201:3::/64", "192.0.2.0/24"])
    assert free[:2] == [4, 5]


def test_a_default_route_takes_no_number() -> None:
    assert free_numbers(["0.0.0.0/0", "::/0"])[0] == 1


def test_a_route_over_all_of_them_leaves_none() -> None:
    assert free_numbers(["10.0.0.0/8"]) == []
