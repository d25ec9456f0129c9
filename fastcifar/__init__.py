"""fastcifar: MobileNetV1 on 32x32 CIFAR-100, as fast as one device allows."""

__version__ = "0.1.0"
