package main

import "errors"

func growth() error { return errors.New("not there yet") }
