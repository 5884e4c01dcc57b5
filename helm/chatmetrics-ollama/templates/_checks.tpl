{{/* Rules between values, which values.schema.json cannot express. All violations are reported together. */}}
{{- define "chatmetrics.checks" -}}
{{- $wrong := concat
    (include "chatmetrics.checkRelease" . | fromJsonArray)
    (include "chatmetrics.checkModels" . | fromJsonArray)
    (include "chatmetrics.checkDatabases" . | fromJsonArray)
    (include "chatmetrics.checkPods" . | fromJsonArray)
    (include "chatmetrics.checkNetwork" . | fromJsonArray) -}}
{{- if $wrong -}}
{{- fail (printf "these values cannot work:\n- %s" (join "\n- " $wrong)) -}}
{{- end -}}
{{- end -}}

{{- define "chatmetrics.checkRelease" -}}
{{- $wrong := list -}}
{{- if or (gt (len .Release.Name) 48) (not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" .Release.Name)) -}}
{{- $wrong = append $wrong (printf "release name %q: Services are named after it, so it must have at most 48 lowercase letters, digits and '-', and start with a letter" .Release.Name) -}}
{{- end -}}
{{- if and (not .Values.serviceAccount.create) (not .Values.serviceAccount.name) -}}
{{- $wrong = append $wrong "serviceAccount.name is empty: name an existing service account, or set serviceAccount.create=true" -}}
{{- end -}}
{{- $wrong | toJson -}}
{{- end -}}

{{- define "chatmetrics.checkModels" -}}
{{- $wrong := list -}}
{{- $lists := dict "models" .Values.models -}}
{{- if .Values.canary.enabled -}}
{{- $_ := set $lists "canary.models" .Values.canary.models -}}
{{- end -}}
{{- range $value, $models := $lists -}}
  {{- if not $models -}}
  {{- $wrong = append $wrong (printf "%s is empty: name at least one, for example --set '%s[0].name=hotel,%s[0].uri=s3://bucket/models/hotel/3'" $value $value $value) -}}
  {{- end -}}
  {{- $names := list -}}
  {{- range $models -}}
    {{- if has .name $names -}}
    {{- $wrong = append $wrong (printf "%s: two models are named %q; each needs its own name" $value .name) -}}
    {{- end -}}
    {{- $names = append $names .name -}}
    {{- if hasPrefix "file://" .uri -}}
    {{- $path := trimPrefix "file://" .uri -}}
    {{- if not (include "chatmetrics.isMounted" (dict "root" $ "path" $path)) -}}
    {{- $wrong = append $wrong (printf "%s: %s is not on a mounted volume; mount the volume of %s with extraVolumes and extraVolumeMounts" $value .uri $path) -}}
    {{- end -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- $wrong | toJson -}}
{{- end -}}

{{- define "chatmetrics.checkDatabases" -}}
{{- $wrong := list -}}
{{- $volumes := list -}}
{{- range .Values.ask.databases -}}
  {{- $place := .path | default .file | default "" -}}
  {{- if and (hasKey . "address") (not (or (hasKey . "path") (hasKey . "existingClaim") (hasKey . "file"))) -}}
  {{- else if or (hasKey . "address") (ne (hasKey . "existingClaim") (hasKey . "file")) (eq (hasKey . "existingClaim") (hasKey . "path")) -}}
  {{- $wrong = append $wrong (printf "ask.databases: %s: name either path, or existingClaim and file, or address" .name) -}}
  {{- else if ne .name (base $place | trimSuffix (ext $place)) -}}
  {{- $wrong = append $wrong (printf "ask.databases: %s: its file is named %s; give both the same name, because the model's prompts contain it" .name (base $place)) -}}
  {{- else if and .path (not (include "chatmetrics.isMounted" (dict "root" $ "path" .path))) -}}
  {{- $wrong = append $wrong (printf "ask.databases: %s: %s is not on a mounted volume; mount its volume with extraVolumes and extraVolumeMounts" .name .path) -}}
  {{- end -}}
  {{- $volume := include "chatmetrics.databaseVolume" . -}}
  {{- if has $volume $volumes -}}
  {{- $wrong = append $wrong (printf "ask.databases: %s: another database has the same name apart from '-' and '_'" .name) -}}
  {{- end -}}
  {{- $volumes = append $volumes $volume -}}
{{- end -}}
{{- if ge (int .Values.query.seconds) (int .Values.limits.requestSeconds) -}}
{{- $wrong = append $wrong (printf "query.seconds=%d leaves the model no time: it must be less than limits.requestSeconds=%d" (int .Values.query.seconds) (int .Values.limits.requestSeconds)) -}}
{{- end -}}
{{- if and .Values.smokeTest.enabled (hasKey .Values.auth.databases .Values.smokeTest.tokenKey) -}}
{{- $wrong = append $wrong (printf "auth.databases: %s: this client runs the smoke test (smokeTest.tokenKey), which reads the acceptance test; leave it out" .Values.smokeTest.tokenKey) -}}
{{- end -}}
{{- $limit := dig "limits" "memory" "" .Values.proxy.resources -}}
{{- $needed := add 256 (mul (int .Values.query.parallel) (int .Values.query.memoryMib)) -}}
{{- if and $limit .Values.ask.databases (lt (include "chatmetrics.mebibytes" $limit | float64) (float64 $needed)) -}}
{{- $wrong = append $wrong (printf "proxy.resources.limits.memory=%v is less than 256 MiB and query.parallel=%d times query.memoryMib=%d: raise it to %dMi" $limit (int .Values.query.parallel) (int .Values.query.memoryMib) $needed) -}}
{{- end -}}
{{- $wrong | toJson -}}
{{- end -}}

{{/* A quantity of memory such as 1.5Gi, in MiB. */}}
{{- define "chatmetrics.mebibytes" -}}
{{- $text := toString . -}}
{{- $bytes := dict "Ti" 1099511627776 "Gi" 1073741824 "Mi" 1048576 "Ki" 1024 "T" 1000000000000 "G" 1000000000 "M" 1000000 "k" 1000 "" 1 -}}
{{- $unit := regexFind "[A-Za-z]*$" $text -}}
{{- divf (mulf (trimSuffix $unit $text | float64) (get $bytes $unit | default 1 | float64)) 1048576.0 -}}
{{- end -}}

{{- define "chatmetrics.checkPods" -}}
{{- $wrong := list -}}
{{- with .Values.gpu -}}
  {{- if and .pool (not .enabled) -}}
  {{- $wrong = append $wrong (printf "gpu.pool=%s without a GPU: set gpu.enabled=true, or use nodeSelector" .pool) -}}
  {{- else if and .pool (not (hasKey .pools .pool)) -}}
  {{- $wrong = append $wrong (printf "gpu.pool=%s is unknown: use one of %s, or add it to gpu.pools" .pool (keys .pools | sortAlpha | join ", ")) -}}
  {{- end -}}
{{- end -}}
{{- with .Values.storage -}}
  {{- if ne (eq .kind "hostPath") (ne .path "") -}}
  {{- $wrong = append $wrong (printf "storage.path=%q with storage.kind=%s: hostPath needs a path, and other kinds have none" .path .kind) -}}
  {{- end -}}
  {{- if and .existingClaim (ne .kind "persistentVolumeClaim") -}}
  {{- $wrong = append $wrong (printf "storage.existingClaim=%s with storage.kind=%s: only persistentVolumeClaim uses a claim" .existingClaim .kind) -}}
  {{- end -}}
{{- end -}}
{{- with .Values.autoscaling -}}
  {{- if and .enabled (gt (int .minReplicas) (int .maxReplicas)) -}}
  {{- $wrong = append $wrong (printf "autoscaling.minReplicas=%d is greater than autoscaling.maxReplicas=%d" (int .minReplicas) (int .maxReplicas)) -}}
  {{- end -}}
  {{- if and .enabled (eq .metric "cpu") (not (dig "requests" "cpu" "" $.Values.ollama.resources)) -}}
  {{- $wrong = append $wrong "autoscaling.metric=cpu is a percentage of ollama.resources.requests.cpu, which is not set" -}}
  {{- end -}}
{{- end -}}
{{- range list "chatmetrics/release.json" "chatmetrics/manifests" "kubectl.kubernetes.io/default-container" -}}
  {{- if hasKey $.Values.podAnnotations . -}}
  {{- $wrong = append $wrong (printf "podAnnotations: %s is set by the chart" .) -}}
  {{- end -}}
{{- end -}}
{{- $own := include "chatmetrics.ollamaEnvironment" (dict "root" . "models" list) | fromYamlArray -}}
{{- range $variable := .Values.ollama.extraEnv -}}
  {{- range $own -}}
  {{- if eq .name $variable.name -}}
  {{- $wrong = append $wrong (printf "ollama.extraEnv: %s is set by the chart" .name) -}}
  {{- end -}}
  {{- end -}}
{{- end -}}
{{- $wrong | toJson -}}
{{- end -}}

{{- define "chatmetrics.checkNetwork" -}}
{{- $wrong := list -}}
{{- if .Values.gateway.enabled -}}
  {{- if not .Values.gateway.name -}}
  {{- $wrong = append $wrong "gateway.name is empty: name the Gateway that the route is attached to" -}}
  {{- end -}}
  {{- if not (.Capabilities.APIVersions.Has "gateway.networking.k8s.io/v1") -}}
  {{- $wrong = append $wrong "gateway.enabled=true, but this cluster has no gateway.networking.k8s.io/v1: install the Gateway API, or render with --api-versions gateway.networking.k8s.io/v1" -}}
  {{- end -}}
{{- else if .Values.canary.enabled -}}
{{- $wrong = append $wrong "canary.enabled=true without a gateway, which splits the requests: set gateway.enabled=true and gateway.name" -}}
{{- end -}}
{{- if .Values.metrics.serviceMonitor.enabled -}}
  {{- if not (.Capabilities.APIVersions.Has "monitoring.coreos.com/v1") -}}
  {{- $wrong = append $wrong "metrics.serviceMonitor.enabled=true, but this cluster has no monitoring.coreos.com/v1: install the Prometheus operator, or render with --api-versions monitoring.coreos.com/v1" -}}
  {{- end -}}
  {{- if and .Values.networkPolicy.enabled (not .Values.networkPolicy.monitoring) -}}
  {{- $wrong = append $wrong "networkPolicy.monitoring is empty: add the peers that read metrics, or Prometheus has no access" -}}
  {{- end -}}
{{- end -}}
{{- if .Values.networkPolicy.enabled -}}
{{- $wrong = concat $wrong (include "chatmetrics.checkEgress" . | fromJsonArray) -}}
{{- end -}}
{{- $wrong | toJson -}}
{{- end -}}

{{- define "chatmetrics.checkEgress" -}}
{{- $wrong := list -}}
{{- $peers := include "chatmetrics.s3Peers" . | fromJsonArray -}}
{{- if and (include "chatmetrics.usesS3" .) (not $peers) -}}
{{- $store := .Values.s3.endpoint | default "Amazon S3" -}}
{{- $wrong = append $wrong (printf "networkPolicy.s3 is empty: %s is no Service of this cluster, so name the addresses of the store, for example --set-json 'networkPolicy.s3=[{\"ipBlock\":{\"cidr\":\"203.0.113.10/32\"}}]'" $store) -}}
{{- end -}}
{{- $lists := dict "networkPolicy.s3" $peers -}}
{{- range $value, $rules := dict "networkPolicy.egress" .Values.networkPolicy.egress "anythingllm.egress" .Values.anythingllm.egress -}}
  {{- range $number, $rule := $rules -}}
  {{- $name := printf "%s[%d]" $value $number -}}
  {{- if $rule.to -}}
  {{- $_ := set $lists $name $rule.to -}}
  {{- else -}}
  {{- $wrong = append $wrong (printf "%s has no `to`, so it allows every address: name its peers" $name) -}}
  {{- end -}}
  {{- end -}}
{{- end -}}
{{- range .Values.networkPolicy.dns.peers -}}
  {{- if and .ipBlock (not (regexMatch "/(32|128)$" .ipBlock.cidr)) -}}
  {{- $_ := set $lists "networkPolicy.dns.peers" $.Values.networkPolicy.dns.peers -}}
  {{- end -}}
{{- end -}}
{{- range $value, $listed := $lists -}}
  {{- range $listed -}}
  {{- with .ipBlock -}}
    {{- range include "chatmetrics.linkLocal" (dict "cidr" .cidr "except" .except) | fromJsonArray -}}
    {{- $wrong = append $wrong (printf "%s: the ipBlock allows link-local addresses, where nodes give out their credentials: add %s to its except, or remove the block" $value .) -}}
    {{- end -}}
  {{- end -}}
  {{- end -}}
{{- end -}}
{{- $wrong | toJson -}}
{{- end -}}

{{/* "true" if a path is on a volume of extraVolumeMounts, else empty. */}}
{{- define "chatmetrics.isMounted" -}}
{{- range .root.Values.extraVolumeMounts -}}
{{- if or (eq $.path .mountPath) (hasPrefix (printf "%s/" (trimSuffix "/" .mountPath)) $.path) -}}true{{- end -}}
{{- end -}}
{{- end -}}
