"""Geometry estimators behind two protocols: sequence geometry and metric anchor."""
