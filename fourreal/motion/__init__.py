"""Optical flow between pictures, and pictures moved along it."""
