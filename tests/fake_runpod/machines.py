"""What there is to rent: types, prices, data centres, stock.

Prices are made up and of the right order.
"""

from dataclasses import dataclass, field

DATA_CENTERS = {
    "EU-RO-1": ("EU Romania 1", "EUROPE"),
    "EUR-IS-1": ("EU Iceland 1", "EUROPE"),
    "US-KS-2": ("US Kansas 2", "NORTH_AMERICA"),
}
CLOUDS = ("SECURE", "COMMUNITY")


@dataclass
class Machine:
    """A GPU type or CPU flavour.

    memory   GB of the GPU, or of RAM per vCPU
    price    USD per hour of one GPU or vCPU by cloud, absent where it is not offered
    cuda     versions of its hosts
    """

    id: str
    name: str
    kind: str
    memory: int
    price: dict[str, float]
    max_count: int = 8
    cuda: tuple[str, ...] = ()
    pool: str | None = None


def _gpu(type_id: str, name: str, memory: int, **price: float) -> Machine:
    return Machine(type_id, name, "gpu", memory, price, cuda=("12.8", "13.0"))


def at_least(version: str, lowest: str) -> bool:
    """Is a CUDA version that or a newer one, by its numbers? `lowest` may be a bare major."""
    numbers = [[int(part) for part in text.split(".")] for text in (version, lowest)]
    return numbers[0] >= numbers[1]


def default_machines() -> dict[str, Machine]:
    """A fresh table."""
    gpus = [
        _gpu("NVIDIA RTX A5000", "RTX A5000", 24, SECURE=0.27, COMMUNITY=0.16),
        _gpu("NVIDIA L4", "L4", 24, SECURE=0.39),
        _gpu("NVIDIA GeForce RTX 3090", "RTX 3090", 24, SECURE=0.46, COMMUNITY=0.22),
        _gpu("NVIDIA GeForce RTX 4090", "RTX 4090", 24, SECURE=0.69, COMMUNITY=0.34),
        _gpu("NVIDIA A40", "A40", 48, SECURE=0.40),
        _gpu("NVIDIA H100 PCIe", "H100 PCIe", 80, SECURE=2.39, COMMUNITY=1.99),
    ]
    cpus = [
        Machine(
            f"cpu{gen}{letter}",
            f"{name} (gen {gen})",
            "cpu",
            ram,
            {"SECURE": price * factor},
            max_count=32,
        )
        for gen, factor in ((3, 1.0), (5, 1.2))
        for letter, name, ram, price in (
            ("c", "Compute-Optimized", 2, 0.03),
            ("g", "General Purpose", 4, 0.04),
            ("m", "Memory-Optimized", 8, 0.05),
        )
    ]
    return {machine.id: machine for machine in gpus + cpus}


@dataclass
class Stock:
    """Levels NONE, LOW, MEDIUM, HIGH by (type, data centre, cloud); HIGH where nothing is said."""

    machines: dict[str, Machine] = field(default_factory=default_machines)
    levels: dict[tuple[str, str, str], str] = field(default_factory=dict)

    def set(
        self, machine: str, level: str, data_center: str | None = None, cloud: str | None = None
    ) -> None:
        """Change one cell, or all that match."""
        for dc in [data_center] if data_center else DATA_CENTERS:
            for each in [cloud] if cloud else CLOUDS:
                self.levels[machine, dc, each] = level

    def level(self, machine: Machine, data_center: str, cloud: str, count: int = 1) -> str:
        """NONE where the type is not offered in that cloud, or not with so many GPUs or vCPUs."""
        if cloud not in machine.price or not 1 <= count <= machine.max_count:
            return "NONE"
        return self.levels.get((machine.id, data_center, cloud), "HIGH")

    def by_data_center(
        self, machine: Machine, cloud: str, count: int = 1, cuda_min: str | None = None
    ) -> dict[str, str]:
        """Data centres that have it now, on hosts with that CUDA, with their level."""
        if cuda_min is not None and not any(at_least(one, cuda_min) for one in machine.cuda):
            return {}
        levels = {dc: self.level(machine, dc, cloud, count) for dc in DATA_CENTERS}
        return {dc: level for dc, level in levels.items() if level != "NONE"}

    def best(
        self, machine: Machine, cloud: str, count: int = 1, cuda_min: str | None = None
    ) -> str:
        levels = self.by_data_center(machine, cloud, count, cuda_min).values()
        return max(levels, key=("NONE", "LOW", "MEDIUM", "HIGH").index, default="NONE")
